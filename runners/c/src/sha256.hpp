// SHA-256 (FIPS 180-4).
#pragma once

#include <cstddef>
#include <string>

namespace berxit {

// The sha256 of bytes in hexadecimal.
std::string sha256(const void* bytes, size_t size);

}  // namespace berxit
