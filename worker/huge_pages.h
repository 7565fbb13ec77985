// Huge pages of mapped files. Decoding reads every weight once per token, and with 4 KiB pages address translation costs it
// a tenth of its speed; not every kernel and file system can put a file on huge ones. Linux only.
#pragma once

#include <cstddef>

namespace plumbline {

// Asks the kernel to put a mapped range on huge pages now. Only advice: LiesOnHugePages tells what came of it.
void CollapseIntoHugePages(const void* begin, size_t num_bytes);

// Whether nine tenths of a range that has just been read are mapped by huge pages. False where the kernel cannot tell
// (before Linux 6.7).
bool LiesOnHugePages(const void* begin, size_t num_bytes);

}  // namespace plumbline
