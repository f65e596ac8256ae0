// The secret that all processes of a job share: it keeps strangers and other jobs off the ports of
// a trusted network, it does not encrypt. It travels in files that only their owner can read and on
// standard input, never in arguments or the environment, which other users can see.
#pragma once

#include <string>

namespace maniple {

// 32 random hexadecimal digits. Throws IoError.
std::string make_job_token();

// Creates the file with mode 0600; it must not exist. Throws IoError.
void write_job_token(const std::string& path, const std::string& token);

// The first line of the file, or of standard input for "-". Throws NoInputError, IoError, and
// ConfigError when others than the owner may read the file, or it holds no token (1 to 64
// characters).
std::string read_job_token(const std::string& path);

}  // namespace maniple
