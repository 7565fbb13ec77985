// One connection of an HttpServer. Internal to the server.
#pragma once

#include <boost/asio/ip/tcp.hpp>
#include <memory>

#include "coordinator/api/http_core.h"

namespace plumbline {

// Takes over an accepted socket whose executor is a strand of core->io.
void StartConnection(std::shared_ptr<HttpCore> core, boost::asio::ip::tcp::socket socket);

}  // namespace plumbline
