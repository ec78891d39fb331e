#include "json.hpp"

#include <charconv>
#include <climits>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <locale>
#include <sstream>

#include "error.hpp"
#include "unicode.hpp"

namespace berxit {

std::string text_of(double number) {
    if (std::isnan(number)) return "nan";
    if (std::isinf(number)) return number < 0 ? "-inf" : "inf";
    std::ostringstream out;
    out.imbue(std::locale::classic());
    out << number;
    return out.str();
}

std::string quoted(const std::string& text) {
    std::string out = "'";
    for (char c : text.substr(0, 60)) {
        const unsigned char byte = static_cast<unsigned char>(c);
        out += byte < 0x20 || byte == 0x7F ? ' ' : c;
    }
    while (out.size() > 1 && text.size() > 60 && (out.back() & 0xC0) == 0x80) out.pop_back();
    return out + (text.size() > 60 ? "...'" : "'");
}

class JsonParser {
public:
    explicit JsonParser(std::string_view text) : text_(text) {}

    Json whole() {
        Json value = read(0);
        blanks();
        if (at_ != text_.size()) fail("text after the end");
        return value;
    }

private:
    static constexpr int kDeepest = 200;

    std::string_view text_;
    size_t at_ = 0;

    [[noreturn]] void fail(const char* what) const {
        throw Failure(std::string("is damaged (byte ") + std::to_string(at_) + ": " + what + ")");
    }

    void blanks() {
        while (at_ < text_.size() && std::strchr(" \t\r\n", text_[at_]) && text_[at_]) ++at_;
    }

    bool skip(char c) {
        if (at_ >= text_.size() || text_[at_] != c) return false;
        ++at_;
        return true;
    }

    bool skip(std::string_view word) {
        if (text_.substr(at_, word.size()) != word) return false;
        at_ += word.size();
        return true;
    }

    Json read(int depth) {
        if (depth > kDeepest) fail("nested too deeply");
        blanks();
        Json value;
        if (at_ >= text_.size()) fail("the text ends early");
        switch (text_[at_]) {
        case '{': object(value, depth); break;
        case '[': array(value, depth); break;
        case '"':
            value.type = Json::Type::string;
            value.string_ = string();
            break;
        case 't':
        case 'f':
            value.type = Json::Type::boolean;
            value.number_ = text_[at_] == 't';
            if (!skip(text_[at_] == 't' ? "true" : "false")) fail("an unknown word");
            break;
        case 'n':
            if (!skip("null")) fail("an unknown word");
            break;
        default: number(value);
        }
        return value;
    }

    void object(Json& value, int depth) {
        value.type = Json::Type::object;
        ++at_;
        blanks();
        if (skip('}')) return;
        do {
            blanks();
            if (at_ >= text_.size() || text_[at_] != '"') fail("a key is expected");
            std::string key = string();
            blanks();
            if (!skip(':')) fail("':' is expected");
            value.object_.emplace_back(std::move(key), read(depth + 1));
            blanks();
        } while (skip(','));
        if (!skip('}')) fail("',' or '}' is expected");
    }

    void array(Json& value, int depth) {
        value.type = Json::Type::array;
        ++at_;
        blanks();
        if (skip(']')) return;
        do {
            value.array_.push_back(read(depth + 1));
            blanks();
        } while (skip(','));
        if (!skip(']')) fail("',' or ']' is expected");
    }

    unsigned hexadecimal() {
        if (text_.size() - at_ < 4) fail("an escape is cut off");
        unsigned value = 0;
        const char* first = text_.data() + at_;
        const auto done = std::from_chars(first, first + 4, value, 16);
        if (done.ptr != first + 4) fail("an unknown escape");
        at_ += 4;
        return value;
    }

    std::string string() {
        std::string out;
        ++at_;
        for (;;) {
            const size_t plain = at_;
            while (at_ < text_.size() && text_[at_] != '"' && text_[at_] != '\\') {
                if (static_cast<unsigned char>(text_[at_]) < 0x20) fail("a control character in a string");
                ++at_;
            }
            out.append(text_.substr(plain, at_ - plain));
            if (at_ >= text_.size()) fail("a string does not end");
            if (text_[at_++] == '"') return out;
            if (at_ >= text_.size()) fail("a string does not end");
            const char c = text_[at_++];
            static constexpr char kNames[] = "\"\\/bfnrt", kValues[] = "\"\\/\b\f\n\r\t";
            if (c == 'u') {
                char32_t code = hexadecimal();
                if (code >= 0xD800 && code < 0xDC00) {
                    if (!skip("\\u")) fail("half of a character");
                    const char32_t low = hexadecimal();
                    if (low < 0xDC00 || low >= 0xE000) fail("half of a character");
                    code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
                } else if (code >= 0xDC00 && code < 0xE000) {
                    fail("half of a character");
                }
                append_utf8(out, code);
            } else if (const char* found = c ? std::strchr(kNames, c) : nullptr) {
                out += kValues[found - kNames];
            } else {
                fail("an unknown escape");
            }
        }
    }

    void digits() {
        const size_t first = at_;
        while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') ++at_;
        if (at_ == first) fail("an unexpected character");
    }

    // The number in a text, whatever the locale of the process.
    static double number_of(const std::string& text) {
        double value = 0;
#if defined(__cpp_lib_to_chars)
        if (std::from_chars(text.data(), text.data() + text.size(), value).ec == std::errc::result_out_of_range)
            value = std::strtod(text.c_str(), nullptr);  // 0 or infinity
#else
        std::istringstream in(text);
        in.imbue(std::locale::classic());
        in >> value;
#endif
        return value;
    }

    void number(Json& value) {
        const size_t first = at_;
        skip('-');
        const bool zero = at_ < text_.size() && text_[at_] == '0';
        const size_t start = at_;
        digits();
        if (zero && at_ - start > 1) fail("a number starts with 0");
        value.whole_ = true;
        if (skip('.')) {
            digits();
            value.whole_ = false;
        }
        if (skip('e') || skip('E')) {
            if (!skip('+')) skip('-');
            digits();
            value.whole_ = false;
        }
        value.type = Json::Type::number;
        const std::string text(text_.substr(first, at_ - first));
        value.number_ = number_of(text);
        if (!std::isfinite(value.number_)) fail("a number is too large");
    }
};

Json Json::parse(std::string_view text) {
    Text characters;
    if (!decode(text, characters)) throw Failure("is damaged (not UTF-8)");
    return JsonParser(text).whole();
}

const Json& Json::operator[](std::string_view key) const {
    static const Json null;
    for (auto member = object_.rbegin(); member != object_.rend(); ++member)
        if (member->first == key) return member->second;
    return null;
}

bool Json::whole(int64_t low, int64_t high, int64_t& value) const {
    if (type != Type::number || !whole_ || !(number_ >= static_cast<double>(low) && number_ <= static_cast<double>(high)))
        return false;
    value = static_cast<int64_t>(number_);
    return true;
}

int32_t Json::id() const {
    int64_t value = -1;
    return whole(0, INT32_MAX, value) ? static_cast<int32_t>(value) : -1;
}

Fields::Fields(const Json& json, std::string place, std::initializer_list<const char*> needed,
               std::initializer_list<const char*> optional)
    : json_(json), place_(std::move(place)) {
    if (!json.is_object()) misfit(place_);
    for (const auto& [key, value] : json.object()) {
        bool known = false;
        for (const char* name : needed) known = known || key == name;
        for (const char* name : optional) known = known || key == name;
        if (!known)
            throw Failure(place_ + ": unknown key " + quoted(key) + ". Upgrade the runner, or export the bundle again");
    }
    for (const char* name : needed) {
        bool found = false;
        for (const auto& member : json.object()) found = found || member.first == name;
        if (!found) throw Failure(place_ + ": key '" + name + "' is missing. Export the bundle again");
    }
}

void Fields::misfit(const std::string& place) {
    throw Failure(place + ": unexpected value. Export the bundle again");
}

const std::string& Fields::string(const char* key) const {
    const Json& value = json_[key];
    if (!value.is_string()) misfit(at(key));
    return value.string();
}

bool Fields::boolean(const char* key) const {
    const Json& value = json_[key];
    if (value.type != Json::Type::boolean) misfit(at(key));
    return value.boolean();
}

int32_t Fields::whole(const char* key, int32_t low) const {
    int64_t value = 0;
    if (!json_[key].whole(INT64_C(-9007199254740992), INT64_C(9007199254740992), value)) misfit(at(key));
    if (value < low || value > INT32_MAX)
        throw Failure(at(key) + " is " + std::to_string(value) + ": it must be at least " + std::to_string(low) +
                      " and at most 2147483647. Export the bundle again");
    return static_cast<int32_t>(value);
}

double Fields::number(const char* key) const {
    const Json& value = json_[key];
    if (!value.is_number()) misfit(at(key));
    return value.number();
}

const Json& Fields::object(const char* key) const {
    const Json& value = json_[key];
    if (!value.is_object()) misfit(at(key));
    return value;
}

const std::vector<Json>& Fields::array(const char* key) const {
    const Json& value = json_[key];
    if (!value.is_array()) misfit(at(key));
    return value.array();
}

std::vector<std::string> Fields::strings(const char* key) const {
    std::vector<std::string> found;
    for (const Json& item : array(key)) {
        if (!item.is_string()) misfit(at(key));
        found.push_back(item.string());
    }
    return found;
}

std::vector<double> Fields::numbers(const Json& json, const std::string& place) {
    if (!json.is_array()) misfit(place);
    std::vector<double> found;
    for (const Json& item : json.array()) {
        if (!item.is_number()) misfit(place);
        found.push_back(item.number());
    }
    return found;
}

std::vector<double> Fields::numbers(const char* key) const { return numbers(json_[key], at(key)); }

std::vector<int32_t> Fields::wholes(const char* key) const {
    std::vector<int32_t> found;
    for (const Json& item : array(key)) {
        int64_t value = 0;
        if (!item.whole(INT32_MIN, INT32_MAX, value)) misfit(at(key));
        found.push_back(static_cast<int32_t>(value));
    }
    return found;
}

}  // namespace berxit
