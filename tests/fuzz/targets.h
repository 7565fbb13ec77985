// Fuzz targets: each takes bytes as a file, a peer or a client could send them, and stops the
// process when the code behind them breaks a promise of its header. NAME's target is in
// NAME_fuzz.cc, its corpus in corpus/NAME/.
#pragma once

#include <string_view>

namespace plumbline {

void FuzzChatTemplate(std::string_view source);  // parsed and rendered
void FuzzHttp(std::string_view bytes);           // one connection from its first byte to its last
void FuzzModelConfig(std::string_view json);     // parsed and cut over ranks
void FuzzRequestBody(std::string_view body);     // as the body of each OpenAI request
void FuzzSafetensors(std::string_view file);     // opened, every tensor read
void FuzzStep(std::string_view message);         // as step plan and as step result
void FuzzTokenizer(std::string_view json);       // loaded, a text encoded and decoded

}  // namespace plumbline
