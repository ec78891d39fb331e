// Tokenizer of a tokenizer.json file (Hugging Face tokenizers): the token ids equal those of training.
#pragma once

#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "json.hpp"
#include "unicode.hpp"

namespace berxit {

struct Tokens {
    std::vector<int32_t> ids, types;
    bool truncated = false;  // the text had more tokens
    size_t size() const { return ids.size(); }
};

using Clock = std::function<double()>;  // seconds
constexpr double kNever = std::numeric_limits<double>::infinity();

// One step of a normalizer or a pre-tokenizer.
using Normalization = std::function<Text(Text)>;
Text applied(const std::vector<Normalization>& steps, Text text);
using Split = std::function<void(TextView, std::vector<Text>&)>;

// Each throws Failure for a part that this runner does not know.
std::vector<Normalization> normalizer_of(const Json& json);
std::vector<Split> pre_tokenizer_of(const Json& json);
Normalization precompiled_map(const std::string& base64);

// Converts one word to token ids.
class TokenModel {
public:
    virtual ~TokenModel() = default;
    virtual void append(TextView word, std::vector<int32_t>& ids) const = 0;
};

std::unique_ptr<TokenModel> word_piece(const Json& json);
std::unique_ptr<TokenModel> byte_pair_encoding(const Json& json);
std::unique_ptr<TokenModel> unigram(const Json& json);

// A part of a text: an added token, or a text between added tokens.
struct Piece {
    int32_t id;  // -1 for a text
    Text text;
};

// Added tokens such as "[SEP]", which are matched in the text before pre-tokenization.
class AddedTokens {
public:
    AddedTokens() = default;
    AddedTokens(const Json& json, const std::vector<Normalization>& normalizer);
    // Splits the text at its added tokens, and normalizes the parts between them.
    std::vector<Piece> split(TextView text, const std::vector<Normalization>& normalizer) const;
    size_t longest() const;

private:
    struct Token {
        int32_t id;
        Text content;
        bool single_word, left_blanks, right_blanks;
    };
    static void split(TextView text, const std::vector<Token>& tokens, std::vector<Piece>& pieces);
    std::vector<Token> raw_, normalized_;  // longest first
};

class Tokenizer {
public:
    // `max_length`: largest number of tokens of an input, special tokens included. Throws Failure for content that this
    // runner does not support.
    Tokenizer(const Json& json, size_t max_length);

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
        bool whole = true;
    };
    using Words = std::vector<Piece>;

    static std::vector<Part> parts_of(const Json& list, const Json& specials);
    void read_template(const Json& json);
    Found ids_of(TextView text, size_t room, double end, const Clock& clock) const;
    Words words_of(TextView text) const;
    void append_ids(const Piece& word, std::vector<int32_t>& ids) const;

    std::vector<Normalization> normalizer_;
    std::vector<Split> pre_tokenizer_;
    std::unique_ptr<TokenModel> model_;
    AddedTokens added_;
    std::vector<Part> single_, pair_;
    size_t max_length_;
    // Number of words at the end of a prefix that may depend on the rest of the text.
    size_t open_words_;
};

}  // namespace berxit
