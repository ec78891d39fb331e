// Errors inside the library. The C API converts them to codes with messages.
#pragma once

#include <stdexcept>
#include <string>

namespace berxit {

// The bundle, the device or ONNX Runtime failed.
struct Failure : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// The caller can fix it by another argument.
struct InputError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// The shortest decimal text of a number that has 6 significant digits, for messages.
std::string text_of(double number);

// A text that is quoted in a message: one line, at most 60 bytes.
std::string quoted(const std::string& text);

}  // namespace berxit
