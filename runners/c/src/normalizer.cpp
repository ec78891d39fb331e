// Normalizers of tokenizer.json.
#include <algorithm>
#include <cstdint>

#include "error.hpp"
#include "tokenizer.hpp"

namespace berxit {
namespace {

bool is_chinese(char32_t c) {  // the blocks of CJK ideographs that BERT's tokenizer lists
    return (c >= 0x4E00 && c <= 0x9FFF) || (c >= 0x3400 && c <= 0x4DBF) || (c >= 0x20000 && c <= 0x2A6DF) ||
        (c >= 0x2A700 && c <= 0x2B73F) || (c >= 0x2B740 && c <= 0x2B81F) || (c >= 0x2B920 && c <= 0x2CEAF) ||
        (c >= 0xF900 && c <= 0xFAFF) || (c >= 0x2F800 && c <= 0x2FA1F);
}

Text clean(Text text) {
    Text out;
    out.reserve(text.size());
    for (char32_t c : text)
        if (!is_control(c)) out += is_whitespace(c) ? U' ' : c;
    return out;
}

Text space_around_chinese(Text text) {
    if (std::none_of(text.begin(), text.end(), is_chinese)) return text;
    Text out;
    for (char32_t c : text) {
        if (is_chinese(c)) {
            out += U' ';
            out += c;
            out += U' ';
        } else {
            out += c;
        }
    }
    return out;
}

template <bool (*kRemoved)(char32_t)>
Text without(Text text) {
    text.erase(std::remove_if(text.begin(), text.end(), kRemoved), text.end());
    return text;
}

Text lowered(Text text) { return lowercase(text); }

Normalization step(std::function<Text(Text)> change) {
    return [change](AlignedText& text) { apply(change, text); };
}

Match pattern_of(const Text& pattern) {
    return [pattern](TextView text, size_t at) { return text.substr(at, pattern.size()) == pattern ? at + pattern.size() : at; };
}

// The matches of a regular expression of the tokenizers that are supported; null for another one.
Match expression_of(const std::string& regex) {
    const auto end_of = [](TextView text, size_t at, bool (*part)(char32_t)) {
        while (at < text.size() && part(text[at])) ++at;
        return at;
    };
    if (regex == " {2,}")
        return [end_of](TextView text, size_t at) {
            const size_t end = end_of(text, at, [](char32_t c) { return c == U' '; });
            return end > at + 1 ? end : at;
        };
    if (regex == "\\s{2,}|[\\n\\r\\t]")
        return [end_of](TextView text, size_t at) {
            const size_t end = end_of(text, at, is_whitespace);
            const bool line = text[at] == U'\n' || text[at] == U'\r' || text[at] == U'\t';
            return end > at + 1 || line ? end : at;
        };
    return nullptr;
}

// Removes whitespace at the ends of a text.
void strip(AlignedText& text, bool left, bool right) {
    size_t start = 0, end = text.text.size();
    while (right && end > 0 && is_whitespace(text.text[end - 1])) --end;
    while (left && start < end && is_whitespace(text.text[start])) ++start;
    text = text.part(start, end - start);
}

Normalization form(Form which) {
    return step([which](Text text) { return normalized(text, which); });
}

Text text_in(const Json& json) {
    Text text;
    decode(json.string(), text);
    return text;
}

void add(const Json& json, std::vector<Normalization>& steps) {
    const std::string& type = json["type"].string();
    if (type == "Sequence") {
        for (const Json& each : json["normalizers"].array()) add(each, steps);
    } else if (type == "BertNormalizer") {
        const bool lower = json["lowercase"].boolean(true);
        if (json["clean_text"].boolean(true)) steps.push_back(step(clean));
        if (json["handle_chinese_chars"].boolean(true)) steps.push_back(step(space_around_chinese));
        if (json["strip_accents"].boolean(lower)) {
            steps.push_back(form(Form::nfd));
            steps.push_back(step(without<is_nonspacing>));
        }
        if (lower) steps.push_back(step(lowered));
    } else if (type == "Lowercase") {
        steps.push_back(step(lowered));
    } else if (type == "StripAccents") {
        steps.push_back(step(without<is_mark>));
    } else if (type == "NFC" || type == "NFD" || type == "NFKC" || type == "NFKD") {
        steps.push_back(form(type == "NFC" ? Form::nfc : type == "NFD" ? Form::nfd : type == "NFKC" ? Form::nfkc : Form::nfkd));
    } else if (type == "Replace" && json["content"].is_string() && !json["pattern"]["String"].string().empty()) {
        const Text pattern = text_in(json["pattern"]["String"]), content = text_in(json["content"]);
        if (content.size() > 64 * pattern.size()) throw Failure("its normalizer makes texts grow");
        const Match match = pattern_of(pattern);
        steps.push_back([match, content](AlignedText& text) { replace(text, match, content); });
    } else if (const Match match = type == "Replace" ? expression_of(json["pattern"]["Regex"].string()) : nullptr;
               match && json["content"].string() == " ") {
        steps.push_back([match](AlignedText& text) { replace(text, match, U" "); });
    } else if (type == "Strip") {
        const bool left = json["strip_left"].boolean(true), right = json["strip_right"].boolean(true);
        steps.push_back([left, right](AlignedText& text) { strip(text, left, right); });
    } else if (type == "Precompiled" && json["precompiled_charsmap"].is_string()) {
        steps.push_back(step(precompiled_map(json["precompiled_charsmap"].string())));
    } else {
        throw Failure("unknown normalizer " + quoted(type));
    }
    if (steps.size() > 64) throw Failure("its normalizer has more than 64 steps");
}

std::string from_base64(const std::string& text) {
    std::string out;
    uint32_t bits = 0;
    int count = 0;
    for (char c : text) {
        if (c == '=') break;
        const uint32_t value = c >= 'A' && c <= 'Z' ? c - 'A'
            : c >= 'a' && c <= 'z'                  ? c - 'a' + 26
            : c >= '0' && c <= '9'                  ? c - '0' + 52
            : c == '+'                              ? 62
            : c == '/'                              ? 63
                                                    : 64;
        if (value == 64) throw Failure("a precompiled_charsmap that is not base64");
        bits = bits << 6 | value;
        count += 6;
        if (count >= 8) {
            count -= 8;
            out += static_cast<char>(bits >> count & 0xFF);
        }
    }
    return out;
}

// Precompiled character map of SentencePiece: a double-array trie that maps spellings to their replacement.
class PrecompiledMap {
public:
    explicit PrecompiledMap(const std::string& bytes) {
        const auto unit = [&bytes](size_t at) {
            uint32_t value = 0;
            for (size_t i = 4; i-- > 0;) value = value << 8 | static_cast<unsigned char>(bytes[at + i]);
            return value;
        };
        if (bytes.size() < 4) damaged();
        const size_t size = unit(0);
        if (size % 4 || size < 4 || size > bytes.size() - 4) damaged();
        for (size_t at = 4; at < 4 + size; at += 4) trie_.push_back(unit(at));
        texts_ = bytes.substr(4 + size);
    }

    // Applies the map to each grapheme if it is short and mapped as a whole, otherwise to each of its characters.
    Text apply(const Text& text) const {
        Text out;
        std::string spelling;
        for (size_t start = 0; start < text.size();) {
            const size_t end = end_of_grapheme(text, start);
            spelling = encode(TextView(text).substr(start, end - start));
            if (end > start + 1 && spelling.size() < 6 && append(spelling, out)) {
                start = end;
                continue;
            }
            for (; start < end; ++start) {
                spelling.clear();
                append_utf8(spelling, text[start]);
                if (!append(spelling, out)) out += text[start];
            }
        }
        return out;
    }

private:
    std::vector<uint32_t> trie_;
    std::string texts_;

    [[noreturn]] static void damaged() { throw Failure("a precompiled_charsmap that cannot be understood"); }

    static size_t offset(uint32_t unit) { return static_cast<size_t>(unit >> 10) << ((unit & 0x200) >> 6); }

    // Appends the replacement of the shortest mapped prefix of the spelling, which replaces the whole spelling. Returns
    // false without one.
    bool append(const std::string& spelling, Text& out) const {
        size_t at = offset(trie_[0]);
        for (char c : spelling) {
            const unsigned char byte = static_cast<unsigned char>(c);
            at ^= byte;
            if (!byte || at >= trie_.size()) return false;
            const uint32_t unit = trie_[at];
            if ((unit & 0x800000FFu) != byte) return false;
            at ^= offset(unit);
            if (unit >> 8 & 1 && at < trie_.size()) {
                const size_t start = trie_[at] & 0x7FFFFFFF;
                if (start > texts_.size()) return false;
                const std::string found = texts_.substr(start, texts_.find('\0', start) - start);
                Text mapped;
                if (!decode(found, mapped)) return false;
                out += mapped;
                return true;
            }
        }
        return false;
    }
};

}  // namespace

std::vector<Normalization> normalizer_of(const Json& json) {
    std::vector<Normalization> steps;
    if (!json.is_null()) add(json, steps);
    return steps;
}

std::function<Text(Text)> precompiled_map(const std::string& base64) {
    const auto map = std::make_shared<PrecompiledMap>(from_base64(base64));
    return [map](Text text) { return map->apply(text); };
}

}  // namespace berxit
