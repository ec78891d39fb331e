// Pre-tokenizers of tokenizer.json, which split a text into words.
#include <algorithm>

#include "error.hpp"
#include "tokenizer.hpp"

namespace berxit {
namespace {

void add_word(const AlignedText& text, size_t start, size_t end, std::vector<AlignedText>& words) {
    if (start < end) words.push_back(text.part(start, end - start));
}

// Splits at whitespace, which is removed; `punctuation`: each punctuation mark is a word, too.
void split_at_blanks(const AlignedText& whole, std::vector<AlignedText>& words, bool punctuation) {
    const TextView text = whole.text;
    size_t start = 0;
    for (size_t place = 0; place < text.size(); ++place) {
        const bool blank = is_whitespace(text[place]), mark = !blank && punctuation && is_punctuation(text[place]);
        if (!blank && !mark) continue;
        add_word(whole, start, place, words);
        if (mark) add_word(whole, place, place + 1, words);
        start = place + 1;
    }
    add_word(whole, start, text.size(), words);
}

// Replaces blanks by a mark, and splits before each mark.
void split_at_marks(AlignedText whole, std::vector<AlignedText>& words, char32_t mark, bool prepend, bool split) {
    Text& marked = whole.text;
    std::replace(marked.begin(), marked.end(), U' ', mark);
    if (prepend && (marked.empty() || marked[0] != mark)) whole.prepend(mark);
    size_t start = 0;
    for (size_t place = 1; split && place < marked.size(); ++place) {
        if (marked[place] != mark) continue;
        add_word(whole, start, place, words);
        start = place;
    }
    add_word(whole, start, marked.size(), words);
}

// End of the first word of a text by GPT-2's pattern:
// 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
size_t end_of_word(TextView text) {
    for (TextView contraction : {U"'s", U"'t", U"'re", U"'ve", U"'m", U"'ll", U"'d"})
        if (text.substr(0, contraction.size()) == contraction) return contraction.size();
    const size_t body = text[0] == U' ' ? 1 : 0;
    const auto end_of = [text](size_t start, Kind kind) {
        while (start < text.size() && kind_of(text[start]) == kind) ++start;
        return start;
    };
    if (body < text.size() && kind_of(text[body]) != Kind::blank) return end_of(body, kind_of(text[body]));
    const size_t blanks = end_of(0, Kind::blank);
    return blanks < text.size() && blanks > 1 ? blanks - 1 : blanks;  // the last blank belongs to the next word
}

void split_byte_level(AlignedText text, std::vector<AlignedText>& words, bool prefix_space) {
    if (prefix_space && (text.text.empty() || text.text[0] != U' ')) text.prepend(U' ');
    for (size_t start = 0; start < text.text.size();) {
        const size_t end = start + end_of_word(TextView(text.text).substr(start));
        add_word(text, start, end, words);
        start = end;
    }
}

// Splits after each blank, which is kept.
void split_after_blanks(const AlignedText& text, std::vector<AlignedText>& words) {
    size_t start = 0;
    for (size_t place = 0; place < text.text.size(); ++place)
        if (text.text[place] == U' ') {
            add_word(text, start, place + 1, words);
            start = place + 1;
        }
    add_word(text, start, text.text.size(), words);
}

void add(const Json& json, std::vector<Split>& steps) {
    const std::string& type = json["type"].string();
    const std::string scheme = json["prepend_scheme"].is_string() ? json["prepend_scheme"].string() : "always";
    Text mark;
    decode(json["replacement"].string(), mark);
    if (type == "Sequence") {
        for (const Json& each : json["pretokenizers"].array()) add(each, steps);
    } else if (type == "BertPreTokenizer" || type == "WhitespaceSplit") {
        const bool punctuation = type == "BertPreTokenizer";
        steps.push_back([=](const AlignedText& text, std::vector<AlignedText>& words) { split_at_blanks(text, words, punctuation); });
    } else if (type == "ByteLevel" && json["use_regex"].boolean(true)) {
        const bool prefix = json["add_prefix_space"].boolean(true);
        steps.push_back([=](const AlignedText& text, std::vector<AlignedText>& words) { split_byte_level(text, words, prefix); });
    } else if (type == "Split" && json["pattern"]["String"].string() == " " && !json["invert"].boolean() &&
               json["behavior"].string() == "MergedWithPrevious") {
        steps.push_back(split_after_blanks);
    } else if (type == "Metaspace" && !mark.empty() && (scheme == "always" || scheme == "never")) {
        const bool prepend = scheme == "always", split = json["split"].boolean(true);
        const char32_t first = mark[0];
        steps.push_back([=](const AlignedText& text, std::vector<AlignedText>& words) {
            split_at_marks(text, words, first, prepend, split);
        });
    } else {
        throw Failure("unknown pre_tokenizer " + quoted(type));
    }
    if (steps.size() > 64) throw Failure("its pre_tokenizer has more than 64 steps");
}

}  // namespace

std::vector<Split> pre_tokenizer_of(const Json& json) {
    std::vector<Split> steps;
    if (!json.is_null()) add(json, steps);
    return steps;
}

}  // namespace berxit
