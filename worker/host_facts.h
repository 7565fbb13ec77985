// What a worker tells about itself and its host.
#pragma once

#include <cstdint>
#include <string>

namespace plumbline {

std::string HostName();
int64_t AvailableMemoryBytes();  // of the host, without swapping; 0 when unknown
int64_t ResidentBytes();         // of this process

}  // namespace plumbline
