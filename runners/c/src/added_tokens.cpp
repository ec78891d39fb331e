// Added tokens of tokenizer.json.
#include <algorithm>

#include "error.hpp"
#include "tokenizer.hpp"

namespace berxit {

void normalize(const std::vector<Normalization>& steps, AlignedText& text) {
    for (const Normalization& step : steps) step(text);
}

AddedTokens::AddedTokens(const Json& json, const std::vector<Normalization>& normalizer) {
    for (const Json& item : json.array()) {
        const int32_t id = item["id"].id();
        Text content;
        decode(item["content"].string(), content);
        if (id < 0 || content.empty()) throw Failure("an added token without id or content");
        const bool normalized = item["normalized"].boolean();
        if (normalized) {
            AlignedText text(content, false);
            normalize(normalizer, text);
            content = text.text;
        }
        // As in the Python runtime: an empty token would match everywhere, and of two equal ones the tokenizers library
        // chooses one at random.
        if (content.empty())
            throw Failure("the added token with id " + std::to_string(id) + " is empty after normalization");
        std::vector<Token>& tokens = normalized ? normalized_ : raw_;
        for (const Token& other : tokens)
            if (normalized && other.content == content)
                throw Failure("the added tokens with ids " + std::to_string(other.id) + " and " + std::to_string(id) +
                              " are equal after normalization");
        tokens.push_back({id, content, item["single_word"].boolean(), item["lstrip"].boolean(), item["rstrip"].boolean()});
    }
    const auto longer = [](const Token& a, const Token& b) { return a.content.size() > b.content.size(); };
    std::stable_sort(raw_.begin(), raw_.end(), longer);
    std::stable_sort(normalized_.begin(), normalized_.end(), longer);
}

size_t AddedTokens::longest() const {
    return std::max(raw_.empty() ? 0 : raw_[0].content.size(), normalized_.empty() ? 0 : normalized_[0].content.size());
}

std::vector<Piece> AddedTokens::split(const AlignedText& text, const std::vector<Normalization>& normalizer) const {
    std::vector<Piece> parts, pieces;
    split(text, raw_, parts);
    for (Piece& part : parts) {
        if (part.id >= 0) {
            pieces.push_back(std::move(part));
            continue;
        }
        normalize(normalizer, part.text);
        split(part.text, normalized_, pieces);
    }
    return pieces;
}

// The matches do not overlap, but blanks that one takes may belong to the next match, which is then found, too.
void AddedTokens::split(const AlignedText& whole, const std::vector<Token>& tokens, std::vector<Piece>& pieces) {
    const TextView text = whole.text;
    const auto is_word_at = [text](size_t place) { return place < text.size() && is_word(text[place]); };
    size_t done = 0;  // the text before this place is already split
    for (size_t at = 0; at < text.size() && !tokens.empty();) {
        const auto token = std::find_if(tokens.begin(), tokens.end(), [text, at](const Token& each) {
            return text[at] == each.content[0] && text.substr(at, each.content.size()) == each.content;
        });
        if (token == tokens.end()) {
            ++at;
            continue;
        }
        size_t start = at, end = at + token->content.size();
        at = end;
        if (token->single_word && ((start > 0 && is_word_at(start - 1)) || is_word_at(end))) continue;
        if (token->left_blanks) {
            while (start > 0 && is_whitespace(text[start - 1])) --start;
            start = std::max(start, done);
        }
        if (token->right_blanks)
            while (end < text.size() && is_whitespace(text[end])) ++end;
        if (done < start) pieces.push_back({-1, whole.part(done, start - done)});
        pieces.push_back({token->id, whole.part(start, end - start)});
        done = end;
    }
    if (done < text.size()) pieces.push_back({-1, whole.part(done, text.size() - done)});
}

}  // namespace berxit
