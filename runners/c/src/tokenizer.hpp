// Tokenizer of a tokenizer.json file (Hugging Face tokenizers): the token ids equal those of training.
#pragma once

#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "aligned.hpp"
#include "json.hpp"

namespace berxit {

// The words of a text.
struct Words {
    std::vector<size_t> tokens;        // position of the first token of each word in the row
    std::vector<size_t> starts, ends;  // characters of each word, in the text as given
    size_t size() const { return tokens.size(); }
};

struct Tokens {
    std::vector<int32_t> ids, types;
    bool truncated = false;  // the text had more tokens
    Words words;             // if the tokenizer finds words
    size_t size() const { return ids.size(); }
};

using Clock = std::function<double()>;  // seconds
constexpr double kNever = std::numeric_limits<double>::infinity();

// One step of a normalizer or a pre-tokenizer.
using Normalization = std::function<void(AlignedText&)>;
void normalize(const std::vector<Normalization>& steps, AlignedText& text);
using Split = std::function<void(const AlignedText&, std::vector<AlignedText>&)>;

// Each throws Failure for a part that this runner does not know.
std::vector<Normalization> normalizer_of(const Json& json);
std::vector<Split> pre_tokenizer_of(const Json& json);
std::function<Text(Text)> precompiled_map(const std::string& base64);

// Converts one word to token ids. `ends` receives the end of each token, in bytes of the word.
class TokenModel {
public:
    virtual ~TokenModel() = default;
    virtual void append(std::string_view word, std::vector<int32_t>& ids, std::vector<size_t>& ends) const = 0;
};

std::unique_ptr<TokenModel> word_piece(const Json& json);
std::unique_ptr<TokenModel> byte_pair_encoding(const Json& json);
std::unique_ptr<TokenModel> unigram(const Json& json);

// A part of a text: an added token, or a text between added tokens.
struct Piece {
    int32_t id;  // -1 for a text
    AlignedText text;
};

// Added tokens such as "[SEP]", which are matched in the text before pre-tokenization.
class AddedTokens {
public:
    AddedTokens() = default;
    AddedTokens(const Json& json, const std::vector<Normalization>& normalizer);
    // Splits the text at its added tokens, and normalizes the parts between them.
    std::vector<Piece> split(const AlignedText& text, const std::vector<Normalization>& normalizer) const;
    size_t longest() const;

private:
    struct Token {
        int32_t id;
        Text content;
        bool single_word, left_blanks, right_blanks;
    };
    static void split(const AlignedText& whole, const std::vector<Token>& tokens, std::vector<Piece>& pieces);
    std::vector<Token> raw_, normalized_;  // longest first
};

class Tokenizer {
public:
    // `max_length`: largest number of tokens of an input, special tokens included. `words`: also find the words of each
    // text. Throws Failure for content that this runner does not support.
    Tokenizer(const Json& json, size_t max_length, bool words = false);

    // Ids and types of one text or a pair (`second` not null), without surrounding whitespace, truncated to the maximum
    // length, the longer text of a pair first. Of a long text, only the necessary prefix is tokenized.
    //
    // `end`: deadline in seconds on `clock`. The prefix does not grow any further if that would miss the deadline.
    Tokens encode(TextView first, const TextView* second, double end, const Clock& clock) const;

    // Text without surrounding whitespace: Unicode's White_Space, and U+001C to U+001F.
    static TextView stripped(TextView text);

private:
    struct Part {
        enum { special, first, second } what;
        int32_t id, type;
    };
    struct Found {
        std::vector<int32_t> ids;
        std::vector<Place> places;  // of each token in the text, if the tokenizer finds words
        bool whole = true;
    };

    static std::vector<Part> parts_of(const Json& list, const Json& specials);
    void read_template(const Json& json);
    Found ids_of(TextView text, size_t room, double end, const Clock& clock) const;
    std::vector<Piece> pieces_of(TextView text) const;
    void append_ids(const Piece& word, Found& found) const;

    std::vector<Normalization> normalizer_;
    std::vector<Split> pre_tokenizer_;
    std::unique_ptr<TokenModel> model_;
    AddedTokens added_;
    std::vector<Part> single_, pair_;
    size_t max_length_;
    bool words_;
    // Number of words at the end of a prefix that may depend on the rest of the text.
    size_t open_words_;
};

}  // namespace berxit
