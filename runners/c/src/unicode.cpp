#include "unicode.hpp"

#include <algorithm>
#include <iterator>

namespace berxit {
namespace {

#include "unicode_tables.inc"

template <size_t N>
unsigned value_in(const Range (&ranges)[N], char32_t c) {
    const Range* found = std::upper_bound(
        std::begin(ranges), std::end(ranges), c, [](char32_t value, const Range& range) { return value < range.first; });
    return found != ranges && c <= found[-1].last ? found[-1].value : 0;
}

// Bits of the characters that most texts consist of.
struct Small {
    static constexpr char32_t kSize = 0x800;
    unsigned short bits[kSize];
    Small() {
        for (char32_t c = 0; c < kSize; ++c) bits[c] = static_cast<unsigned short>(value_in(kProperties, c));
    }
};

template <size_t N>
const Mapping* found_in(const Mapping (&mappings)[N], char32_t c) {
    const Mapping* found = std::lower_bound(
        std::begin(mappings), std::end(mappings), c, [](const Mapping& entry, char32_t value) { return entry.from < value; });
    return found != std::end(mappings) && found->from == c ? found : nullptr;
}

namespace hangul {
constexpr char32_t kFirst = 0xAC00, kLeading = 0x1100, kVowel = 0x1161, kFinal = 0x11A7;
constexpr char32_t kLeadings = 19, kVowels = 21, kFinals = 28, kCount = kLeadings * kVowels * kFinals;

bool is_syllable(char32_t c) { return c >= kFirst && c < kFirst + kCount; }

void decompose(char32_t c, Text& out) {
    const char32_t place = c - kFirst;
    out += kLeading + place / (kVowels * kFinals);
    out += kVowel + place / kFinals % kVowels;
    if (place % kFinals) out += kFinal + place % kFinals;
}

// 0 without a composition.
char32_t compose(char32_t first, char32_t second) {
    if (first >= kLeading && first < kLeading + kLeadings && second >= kVowel && second < kVowel + kVowels)
        return kFirst + ((first - kLeading) * kVowels + second - kVowel) * kFinals;
    if (is_syllable(first) && (first - kFirst) % kFinals == 0 && second > kFinal && second < kFinal + kFinals)
        return first + second - kFinal;
    return 0;
}

bool is_leading(char32_t c) { return (c >= 0x1100 && c <= 0x115F) || (c >= 0xA960 && c <= 0xA97C); }
bool is_vowel(char32_t c) { return (c >= 0x1160 && c <= 0x11A7) || (c >= 0xD7B0 && c <= 0xD7C6); }
bool is_final(char32_t c) { return (c >= 0x11A8 && c <= 0x11FF) || (c >= 0xD7CB && c <= 0xD7FB); }

bool joined(char32_t before, char32_t c) {
    const bool syllable = is_syllable(before), open = syllable && (before - kFirst) % kFinals == 0;
    if (is_leading(before)) return is_leading(c) || is_vowel(c) || is_syllable(c);
    if (is_vowel(before) || open) return is_vowel(c) || is_final(c);
    return (is_final(before) || syllable) && is_final(c);
}
}  // namespace hangul

char32_t composed(char32_t first, char32_t second) {
    if (second < 0x300) return 0;
    if (const char32_t syllable = hangul::compose(first, second)) return syllable;
    const Pair* found = std::lower_bound(
        std::begin(kComposed), std::end(kComposed), Pair{first, second, 0}, [](const Pair& a, const Pair& b) {
            return a.first != b.first ? a.first < b.first : a.second < b.second;
        });
    return found != std::end(kComposed) && found->first == first && found->second == second ? found->whole : 0;
}

Text decomposed(TextView text, bool compatible) {
    Text out;
    for (char32_t c : text) {
        if (c < 0x80) {
            out += c;
            continue;
        }
        if (hangul::is_syllable(c)) {
            hangul::decompose(c, out);
            continue;
        }
        const Mapping* own = compatible ? found_in(kCompatible, c) : nullptr;
        if (own) {
            out.append(kCompatibleText + own->place, own->size);
        } else if (const Mapping* found = found_in(kDecomposed, c)) {
            out.append(kDecomposedText + found->place, found->size);
        } else {
            out += c;
        }
    }
    // Canonical order: sorts the marks after each starter by their class; marks of one class keep their order.
    for (size_t start = 0; start < out.size();) {
        if (out[start] < 0x300 || !value_in(kCombiningClasses, out[start])) {
            ++start;
            continue;
        }
        size_t end = start;
        while (end < out.size() && value_in(kCombiningClasses, out[end])) ++end;
        if (end - start > 1)
            std::stable_sort(out.begin() + start, out.begin() + end, [](char32_t a, char32_t b) {
                return value_in(kCombiningClasses, a) < value_in(kCombiningClasses, b);
            });
        start = end;
    }
    return out;
}

Text recomposed(TextView text) {
    Text out;
    size_t starter = Text::npos;
    unsigned last_class = 0;
    for (char32_t c : text) {
        const unsigned own_class = value_in(kCombiningClasses, c);
        if (starter != Text::npos && (starter + 1 == out.size() || last_class < own_class)) {
            if (const char32_t whole = composed(out[starter], c)) {
                out[starter] = whole;
                continue;
            }
        }
        if (!own_class) starter = out.size();
        last_class = own_class;
        out += c;
    }
    return out;
}

}  // namespace

unsigned properties(char32_t c) {
    static const Small small;
    return c < Small::kSize ? small.bits[c] : value_in(kProperties, c);
}

bool is_whitespace(char32_t c) { return properties(c) & kWhitespace; }
bool is_control(char32_t c) { return properties(c) & kControl; }
bool is_nonspacing(char32_t c) { return properties(c) & kNonspacing; }
bool is_mark(char32_t c) { return properties(c) & kMark; }
bool is_punctuation(char32_t c) { return properties(c) & kPunctuation; }
bool is_word(char32_t c) { return properties(c) & kWord; }

Kind kind_of(char32_t c) {
    const unsigned bits = properties(c);
    return bits & kLetter ? Kind::letter : bits & kNumber ? Kind::number : bits & kBlank ? Kind::blank : Kind::other;
}

Text lowercase(TextView text) {
    Text out;
    out.reserve(text.size());
    for (char32_t c : text) {
        if (c < 0x80) {
            out += c >= U'A' && c <= U'Z' ? c + 32 : c;
        } else if (const Mapping* found = found_in(kLowered, c)) {
            out.append(kLoweredText + found->place, found->size);
        } else {
            out += c;
        }
    }
    return out;
}

Text normalized(TextView text, Form form) {
    if (std::all_of(text.begin(), text.end(), [](char32_t c) { return c < 0x80; })) return Text(text);
    const bool compatible = form == Form::nfkc || form == Form::nfkd;
    const Text parts = decomposed(text, compatible);
    return form == Form::nfc || form == Form::nfkc ? recomposed(parts) : parts;
}

size_t end_of_grapheme(TextView text, size_t start) {
    size_t end = start + 1;
    bool picture = properties(text[start]) & kPictograph;  // of the last character that is not a mark
    while (end < text.size()) {
        const char32_t before = text[end - 1], c = text[end];
        const unsigned first = properties(before), second = properties(c);
        const bool breaks = (first | second) & kBreaks;
        const bool joined = before == U'\r' ? c == U'\n'
            : breaks                        ? false
            : second & kExtends             ? true
            : first & kPrepends             ? true
            : before == 0x200D && picture   ? (second & kPictograph) != 0
                                            : hangul::joined(before, c);
        if (!joined) break;
        if (!(second & kExtends)) picture = second & kPictograph;
        ++end;
    }
    return end;
}

bool decode(std::string_view bytes, Text& text) {
    text.clear();
    text.reserve(bytes.size());
    for (size_t at = 0; at < bytes.size();) {
        const unsigned char first = static_cast<unsigned char>(bytes[at]);
        const size_t size = first < 0x80 ? 1 : first < 0xC2 ? 0 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : first < 0xF5 ? 4 : 0;
        if (!size || size > bytes.size() - at) return false;
        char32_t c = size == 1 ? first : first & (0x7F >> size);
        for (size_t place = 1; place < size; ++place) {
            const unsigned char byte = static_cast<unsigned char>(bytes[at + place]);
            if ((byte & 0xC0) != 0x80) return false;
            c = c << 6 | (byte & 0x3F);
        }
        if ((size == 3 && (c < 0x800 || (c >= 0xD800 && c < 0xE000))) || (size == 4 && (c < 0x10000 || c > 0x10FFFF)))
            return false;
        text += c;
        at += size;
    }
    return true;
}

void append_utf8(std::string& bytes, char32_t c) {
    if (c < 0x80) {
        bytes += static_cast<char>(c);
    } else if (c < 0x800) {
        bytes += static_cast<char>(0xC0 | c >> 6);
        bytes += static_cast<char>(0x80 | (c & 0x3F));
    } else if (c < 0x10000) {
        bytes += static_cast<char>(0xE0 | c >> 12);
        bytes += static_cast<char>(0x80 | (c >> 6 & 0x3F));
        bytes += static_cast<char>(0x80 | (c & 0x3F));
    } else {
        bytes += static_cast<char>(0xF0 | c >> 18);
        bytes += static_cast<char>(0x80 | (c >> 12 & 0x3F));
        bytes += static_cast<char>(0x80 | (c >> 6 & 0x3F));
        bytes += static_cast<char>(0x80 | (c & 0x3F));
    }
}

std::string encode(TextView text) {
    std::string bytes;
    bytes.reserve(text.size());
    for (char32_t c : text) append_utf8(bytes, c);
    return bytes;
}

}  // namespace berxit
