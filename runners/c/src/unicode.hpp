// Properties of characters, case mapping and normalization forms, as in the tokenizers library.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace berxit {

using Text = std::u32string;
using TextView = std::u32string_view;

struct Range {
    char32_t first, last;
    unsigned value;
};

struct Mapping {
    char32_t from;
    unsigned place, size;
};

struct Pair {
    char32_t first, second, whole;
};

// The bits of a character, kWhitespace and others in unicode_tables.inc.
unsigned properties(char32_t c);

bool is_whitespace(char32_t c);
bool is_control(char32_t c);      // removed by BERT's clean_text
bool is_nonspacing(char32_t c);
bool is_mark(char32_t c);
bool is_punctuation(char32_t c);
bool is_word(char32_t c);

enum class Kind { letter, number, blank, other };
Kind kind_of(char32_t c);  // in the pattern of byte-level BPE

Text lowercase(TextView text);

enum class Form { nfc, nfd, nfkc, nfkd };
Text normalized(TextView text, Form form);

// End of the grapheme that starts at `start`. Exact for graphemes of at most 5 bytes of UTF-8; a longer one may be split
// into parts that are not mapped differently.
size_t end_of_grapheme(TextView text, size_t start);

// UTF-8. `decode` returns false for bytes that are not valid UTF-8.
bool decode(std::string_view bytes, Text& text);
void append_utf8(std::string& bytes, char32_t c);
std::string encode(TextView text);

}  // namespace berxit
