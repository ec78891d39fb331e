#include "tokenizer.hpp"

#include <algorithm>

#include "error.hpp"

namespace berxit {
namespace {

// Length of the first prefix of a long text, in characters per token of the maximum length.
constexpr size_t kCharactersPerToken = 6;
// Largest length of the texts of a pair whose tokens are all counted, in characters per token of the maximum length. The
// count decides which text gets the odd token.
constexpr size_t kCountedCharactersPerToken = 32;
// Growth factor of the prefix of a long text; it grows until it contains enough tokens.
constexpr size_t kGrowth = 2;
constexpr size_t kNoLimit = static_cast<size_t>(-1);
constexpr int32_t kTokenTypes = 2;

// Whitespace around a text.
bool is_blank(char32_t c) {
    return (c >= 0x9 && c <= 0xD) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
        (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

// True for a letter, mark or digit of a script that separates words by blanks.
bool joins(char32_t c) {
    static constexpr char32_t kUnspaced[][2] = {{0xE00, 0xEFF},   {0x1000, 0x109F}, {0x1780, 0x17FF},  {0x3040, 0x30FF},
                                                {0x3400, 0x4DBF}, {0x4E00, 0x9FFF}, {0xF900, 0xFAFF}, {0x20000, 0x3FFFF}};
    const Kind kind = kind_of(c);
    return (kind == Kind::letter || kind == Kind::number || is_mark(c)) &&
        std::none_of(std::begin(kUnspaced), std::end(kUnspaced), [c](const auto& each) { return c >= each[0] && c <= each[1]; });
}

// The words of a text: docs/bundle.md, "decisions". `places`: of its first `count` tokens, of which the first is at
// `position` in the row. `indent`: number of characters before the text.
Words words_of(TextView text, const std::vector<Place>& places, size_t count, size_t position, size_t indent) {
    Words words;
    for (size_t number = 0; number < count; ++number) {
        auto [start, end] = places[number];
        while (start < end && is_blank(text[start])) ++start;  // some tokenizers include the blank before a word
        if (start >= end) continue;
        const bool first = words.ends.empty();
        const size_t open = first ? 0 : words.ends.back() - indent;
        if (!first && (start < open || (start == open && joins(text[start - 1]) && joins(text[start])))) {
            words.ends.back() = indent + std::max(open, end);
        } else {
            words.tokens.push_back(position + number);
            words.starts.push_back(indent + start);
            words.ends.push_back(indent + end);
        }
    }
    return words;
}

std::unique_ptr<TokenModel> model_of(const Json& json) {
    const std::string& type = json["type"].string();
    if (type == "WordPiece") return word_piece(json);
    if (type == "BPE") return byte_pair_encoding(json);
    if (type == "Unigram") return unigram(json);
    throw Failure("unknown model " + quoted(type));
}

// Numbers of tokens kept of each text of a pair. The longer text is truncated to the length of the shorter, then both
// equally. An odd token goes to the longer text, or to the second if both have the same length.
std::pair<size_t, size_t> longest_first(size_t first, size_t second, size_t room) {
    if (first + second <= room) return {first, second};
    size_t shorter = std::min(first, second), longer = room - std::min(room, shorter);
    if (shorter > room / 2) {
        shorter = room / 2;
        longer = room - shorter;
    }
    return first > second ? std::make_pair(longer, shorter) : std::make_pair(shorter, longer);
}

}  // namespace

Tokenizer::Tokenizer(const Json& json, size_t max_length, bool words)
    : normalizer_(normalizer_of(json["normalizer"])),
      pre_tokenizer_(pre_tokenizer_of(json["pre_tokenizer"])),
      model_(model_of(json["model"])),
      added_(json["added_tokens"], normalizer_),
      max_length_(max_length),
      words_(words),
      open_words_(std::max<size_t>(2, added_.longest())) {
    read_template(json["post_processor"]);
    for (const auto* parts : {&single_, &pair_})
        for (const Part& part : *parts)
            if (part.type >= kTokenTypes) throw Failure("token type " + std::to_string(part.type));
}

std::vector<Tokenizer::Part> Tokenizer::parts_of(const Json& list, const Json& specials) {
    std::vector<Part> parts;
    for (const Json& item : list.array()) {
        const Json &special = item["SpecialToken"], &sequence = item["Sequence"];
        if (special["id"].is_string() && special["type_id"].id() >= 0 && specials[special["id"].string()]["ids"].is_array()) {
            for (const Json& id : specials[special["id"].string()]["ids"].array())
                if (id.id() >= 0) parts.push_back({Part::special, id.id(), special["type_id"].id()});
        } else if (sequence["id"].is_string() && sequence["type_id"].id() >= 0) {
            parts.push_back({sequence["id"].string() == "A" ? Part::first : Part::second, 0, sequence["type_id"].id()});
        } else {
            throw Failure("a post_processor that cannot be understood");
        }
    }
    return parts;
}

void Tokenizer::read_template(const Json& json) {
    const std::string& type = json["type"].string();
    if (json.is_null()) {
        single_ = {{Part::first, 0, 0}};
        pair_ = {{Part::first, 0, 0}, {Part::second, 0, 1}};
    } else if (type == "TemplateProcessing") {
        single_ = parts_of(json["single"], json["special_tokens"]);
        pair_ = parts_of(json["pair"], json["special_tokens"]);
    } else if (type == "BertProcessing" || type == "RobertaProcessing") {
        const auto &cls = json["cls"].array(), &sep = json["sep"].array();
        if (cls.size() != 2 || sep.size() != 2 || cls[1].id() < 0 || sep[1].id() < 0)
            throw Failure("a post_processor without cls or sep");
        const Part start{Part::special, cls[1].id(), 0}, end{Part::special, sep[1].id(), 0};
        single_ = pair_ = {start, {Part::first, 0, 0}, end};
        const bool roberta = type == "RobertaProcessing";
        if (roberta) pair_.push_back(end);
        pair_.push_back({Part::second, 0, roberta ? 0 : 1});
        pair_.push_back({Part::special, end.id, roberta ? 0 : 1});
    } else {
        throw Failure("unknown post_processor " + quoted(type));
    }
}

Tokens Tokenizer::encode(TextView given, const TextView* second, double end, const Clock& clock) const {
    const TextView first = stripped(given);
    const TextView other = second ? stripped(*second) : TextView();
    const std::vector<Part>& parts = second ? pair_ : single_;
    const auto specials = static_cast<size_t>(
        std::count_if(parts.begin(), parts.end(), [](const Part& part) { return part.what == Part::special; }));
    const size_t room = max_length_ - std::min(max_length_, specials);
    const Found of_first = ids_of(first, room, end, clock);
    const Found of_second = second ? ids_of(other, room, end, clock) : Found();
    size_t counts[2] = {of_first.ids.size(), of_second.ids.size()};
    const bool whole = of_first.whole && of_second.whole;
    if (second && std::min(counts[0], counts[1]) > room) {
        const bool countable = std::max(first.size(), other.size()) <= kCountedCharactersPerToken * max_length_;
        if (countable && !whole && clock() < end) {
            counts[0] = ids_of(first, kNoLimit, end, clock).ids.size();
            counts[1] = ids_of(other, kNoLimit, end, clock).ids.size();
        } else if (!(countable && whole)) {  // too long to count the tokens: the number of characters decides
            counts[0] = room + (first.size() > other.size() ? 2 : 1);
            counts[1] = room + 1;
        }
    }
    auto [kept, kept_of_second] = longest_first(counts[0], counts[1], room);
    kept = std::min(kept, of_first.ids.size());
    kept_of_second = std::min(kept_of_second, of_second.ids.size());
    Tokens tokens;
    tokens.truncated = !whole || kept < of_first.ids.size() || kept_of_second < of_second.ids.size();
    for (const Part& part : parts) {
        const Found& found = part.what == Part::first ? of_first : of_second;
        const size_t size = part.what == Part::special ? 1 : part.what == Part::first ? kept : kept_of_second;
        if (words_ && part.what == Part::first)
            tokens.words = words_of(
                first, found.places, size, tokens.ids.size(), static_cast<size_t>(first.data() - given.data()));
        if (part.what == Part::special)
            tokens.ids.push_back(part.id);
        else
            tokens.ids.insert(tokens.ids.end(), found.ids.begin(), found.ids.begin() + static_cast<std::ptrdiff_t>(size));
        tokens.types.insert(tokens.types.end(), size, part.type);
    }
    return tokens;
}

// All ids of a text, or of a prefix with more than `room` tokens.
//
// Normalization and pre-tokenization look ahead at most one word, and the model tokenizes one word at a time. So the ids
// of a prefix without its last words are the first ids of the text.
Tokenizer::Found Tokenizer::ids_of(TextView text, size_t room, double end, const Clock& clock) const {
    Found found;
    for (size_t length = kCharactersPerToken * max_length_; length < text.size(); length *= kGrowth) {
        const double begin = clock();
        const std::vector<Piece> words = pieces_of(text.substr(0, length));
        const size_t closed = words.size() - std::min(words.size(), open_words_);
        found = Found();
        for (size_t place = 0; place < closed; ++place) append_ids(words[place], found);
        const double time = clock();
        found.whole = false;
        if (found.ids.size() > room) return found;
        if (time + static_cast<double>(kGrowth) * (time - begin) > end) {
            for (size_t place = closed; place < words.size(); ++place) append_ids(words[place], found);
            return found;
        }
    }
    found = Found();
    for (const Piece& word : pieces_of(text)) append_ids(word, found);
    return found;
}

// Added tokens, and the words between them.
std::vector<Piece> Tokenizer::pieces_of(TextView text) const {
    std::vector<Piece> words;
    for (Piece& piece : added_.split(AlignedText(text, words_), normalizer_)) {
        if (piece.id >= 0) {
            words.push_back(std::move(piece));
            continue;
        }
        std::vector<AlignedText> parts{std::move(piece.text)}, next;
        for (const Split& step : pre_tokenizer_) {
            for (const AlignedText& part : parts) step(part, next);
            parts.swap(next);
            next.clear();
        }
        for (AlignedText& part : parts)
            if (!part.text.empty()) words.push_back({-1, std::move(part)});
    }
    return words;
}

void Tokenizer::append_ids(const Piece& word, Found& found) const {
    if (word.id >= 0) {
        found.ids.push_back(word.id);
        if (words_) found.places.push_back(word.text.place(0, word.text.text.size()));
        return;
    }
    const std::string bytes = berxit::encode(word.text.text);
    std::vector<size_t> ends;
    model_->append(bytes, found.ids, ends);
    if (!words_) return;
    std::vector<size_t> character;  // the number of the character of each byte
    size_t number = 0;
    for (char byte : bytes) character.push_back((byte & 0xC0) == 0x80 ? number - 1 : number++);
    size_t start = 0;
    for (size_t end : ends) {
        found.places.push_back(start < end ? word.text.place(character[start], character[end - 1] + 1) : Place{0, 0});
        start = end;
    }
}

TextView Tokenizer::stripped(TextView text) {
    while (!text.empty() && is_blank(text.back())) text.remove_suffix(1);
    while (!text.empty() && is_blank(text.front())) text.remove_prefix(1);
    return text;
}

}  // namespace berxit
