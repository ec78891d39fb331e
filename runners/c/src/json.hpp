// JSON values, and strict reading of objects.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace berxit {

class Json {
public:
    enum class Type { null, boolean, number, string, array, object };
    using Member = std::pair<std::string, Json>;

    // Throws Failure for text that is not JSON, UTF-8, or nested deeper than 200 levels.
    static Json parse(std::string_view text);

    Type type = Type::null;

    bool is_null() const { return type == Type::null; }
    bool is_string() const { return type == Type::string; }
    bool is_number() const { return type == Type::number; }
    bool is_array() const { return type == Type::array; }
    bool is_object() const { return type == Type::object; }

    // The value of a key, the last of several; null if it is missing or this is no object.
    const Json& operator[](std::string_view key) const;

    // Values of one type. Other types give the default.
    bool boolean(bool otherwise = false) const { return type == Type::boolean ? number_ != 0 : otherwise; }
    double number(double otherwise = 0) const { return type == Type::number ? number_ : otherwise; }
    // True if this is a whole number in [low, high], which is then stored in `value`.
    bool whole(int64_t low, int64_t high, int64_t& value) const;
    // A token id, from 0; -1 if this is none.
    int32_t id() const;
    const std::string& string() const { return string_; }
    const std::vector<Json>& array() const { return array_; }
    const std::vector<Member>& object() const { return object_; }

private:
    friend class JsonParser;
    double number_ = 0;
    bool whole_ = false;  // written without a fraction or an exponent
    std::string string_;
    std::vector<Json> array_;
    std::vector<Member> object_;
};

// Members of one object. Unknown and missing keys and values of other types are errors, so that no value is guessed.
class Fields {
public:
    // `place`: path of the object, for messages.
    Fields(const Json& json, std::string place, std::initializer_list<const char*> needed,
           std::initializer_list<const char*> optional = {});

    const std::string& string(const char* key) const;
    bool boolean(const char* key) const;
    int32_t whole(const char* key, int32_t low = INT32_MIN) const;
    double number(const char* key) const;
    bool has(const char* key) const { return !json_[key].is_null(); }
    const Json& object(const char* key) const;
    std::vector<std::string> strings(const char* key) const;
    std::vector<double> numbers(const char* key) const;
    std::vector<int32_t> wholes(const char* key) const;
    const std::vector<Json>& array(const char* key) const;
    std::string at(const char* key) const { return place_ + ": " + key; }
    const std::string& place() const { return place_; }

    static std::vector<double> numbers(const Json& json, const std::string& place);
    [[noreturn]] static void misfit(const std::string& place);

private:
    const Json& json_;
    std::string place_;
};

}  // namespace berxit
