// The tokenizer models WordPiece, BPE and Unigram.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <deque>
#include <queue>
#include <unordered_map>

#include "error.hpp"
#include "tokenizer.hpp"

namespace berxit {
namespace {

// Token -> value. The keys refer to texts that the vocabulary stores.
template <typename Value>
class Vocabulary {
public:
    void add(std::string token, Value value) {
        tokens_.push_back(std::move(token));
        const auto [place, added] = values_.try_emplace(tokens_.back(), value);
        if (!added) place->second = value;
        longest_ = std::max(longest_, tokens_.back().size());
    }

    const Value* find(std::string_view token) const {
        const auto found = values_.find(token);
        return found == values_.end() ? nullptr : &found->second;
    }

    size_t longest() const { return longest_; }

private:
    std::deque<std::string> tokens_;  // never moves its elements
    std::unordered_map<std::string_view, Value> values_;
    size_t longest_ = 0;
};

// WordPiece (BERT): repeatedly splits off the longest prefix of a word that is in the vocabulary.
class WordPiece final : public TokenModel {
public:
    explicit WordPiece(const Json& json) {
        unknown_ = json["vocab"][json["unk_token"].string()].id();
        if (!json["unk_token"].is_string() || unknown_ < 0) throw Failure("a WordPiece model without vocab or unk_token");
        int64_t longest = 100;
        json["max_input_chars_per_word"].whole(0, INT32_MAX, longest);
        longest_word_ = static_cast<size_t>(longest);
        const Json& stated = json["continuing_subword_prefix"];
        const std::string prefix = stated.is_string() ? stated.string() : "##";
        for (const auto& [token, value] : json["vocab"].object()) {
            if (value.id() < 0) throw Failure("token " + quoted(token) + " has no id");
            beginnings_.add(token, value.id());
            if (token.compare(0, prefix.size(), prefix) == 0) continuations_.add(token.substr(prefix.size()), value.id());
        }
    }

    void append(std::string_view bytes, std::vector<int32_t>& ids, std::vector<size_t>& ends) const override {
        const size_t before = ids.size();
        const auto unknown = [&] {
            ids.resize(before);
            ids.push_back(unknown_);
            ends.assign(1, bytes.size());
        };
        const auto characters = std::count_if(bytes.begin(), bytes.end(), [](char byte) { return (byte & 0xC0) != 0x80; });
        if (static_cast<size_t>(characters) > longest_word_) return unknown();
        for (size_t start = 0; start < bytes.size();) {
            const auto& tokens = start ? continuations_ : beginnings_;
            const int32_t* id = nullptr;
            size_t end = std::min(bytes.size(), start + tokens.longest());
            for (; end > start; --end) {
                id = tokens.find(bytes.substr(start, end - start));
                if (id) break;
            }
            if (!id) return unknown();
            ids.push_back(*id);
            ends.push_back(end);
            start = end;
        }
    }

private:
    Vocabulary<int32_t> beginnings_, continuations_;
    int32_t unknown_;
    size_t longest_word_;
};

// BPE: merges adjacent tokens of a word in the order of the merge ranks. At first, the tokens are bytes (byte-level BPE,
// RoBERTa), or characters, and the bytes of unknown characters (byte fallback, mmBERT).
class BytePairEncoding final : public TokenModel {
public:
    explicit BytePairEncoding(const Json& json) {
        if (!json["vocab"].is_object() || !json["merges"].is_array()) throw Failure("a BPE model without vocab or merges");
        if (json["dropout"].number() > 0 || json["ignore_merges"].boolean() ||
            !json["continuing_subword_prefix"].string().empty() || !json["end_of_word_suffix"].string().empty())
            throw Failure("a BPE model of another kind than RoBERTa's or mmBERT's");
        Vocabulary<int32_t> ids;
        fallback_ = json["byte_fallback"].boolean();
        for (const auto& [token, value] : json["vocab"].object()) {
            if (value.id() < 0) throw Failure("token " + quoted(token) + " has no id");
            ids.add(token, value.id());
            Text characters;
            if (fallback_ && decode(token, characters) && characters.size() == 1) of_character_[characters[0]] = value.id();
        }
        for (int byte = 0; byte < 256; ++byte) {
            std::string letter;
            append_utf8(letter, letter_of(byte));
            char name[8];
            std::snprintf(name, sizeof name, "<0x%02X>", static_cast<unsigned>(byte & 0xFF));
            const int32_t* id = ids.find(fallback_ ? name : letter);
            if (!id) throw Failure("a BPE model in which byte " + std::to_string(byte) + " has no token");
            of_byte_[byte] = *id;
        }
        for (const Json& merge : json["merges"].array()) {
            std::string left, right;
            if (merge.array().size() == 2) {
                left = merge.array()[0].string(), right = merge.array()[1].string();
            } else {
                const size_t blank = merge.string().find(' ');
                left = merge.string().substr(0, blank);
                right = blank == std::string::npos ? "" : merge.string().substr(blank + 1);
            }
            const int32_t *first = ids.find(left), *second = ids.find(right), *whole = ids.find(left + right);
            if (left.empty() || right.empty() || !first || !second || !whole)
                throw Failure("merge " + std::to_string(merges_.size()) + " does not fit the vocabulary");
            merges_[key(*first, *second)] = {rank_++, *whole};
        }
    }

    void append(std::string_view bytes, std::vector<int32_t>& ids, std::vector<size_t>& ends) const override {
        std::vector<Symbol> symbols = symbols_of(bytes);
        std::priority_queue<Candidate> candidates;
        const auto count = static_cast<int32_t>(symbols.size());
        const auto offer = [&](int32_t left) {
            const int32_t right = left < 0 ? -1 : symbols[left].next;
            if (right < 0) return;
            const auto found = merges_.find(key(symbols[left].id, symbols[right].id));
            if (found != merges_.end())
                candidates.push({found->second.rank, left, symbols[left].id, symbols[right].id, found->second.id});
        };
        for (int32_t place = 0; place + 1 < count; ++place) offer(place);
        while (!candidates.empty()) {
            const Candidate best = candidates.top();
            candidates.pop();
            Symbol& left = symbols[best.place];
            const int32_t right = left.next;
            if (left.id != best.left || right < 0 || symbols[right].id != best.right) continue;  // merged meanwhile
            left.id = best.id;
            left.end = symbols[right].end;
            left.next = symbols[right].next;
            symbols[right].id = -1;
            if (left.next >= 0) symbols[left.next].previous = best.place;
            offer(best.place);
            offer(left.previous);
        }
        for (int32_t place = count ? 0 : -1; place >= 0; place = symbols[place].next) {
            ids.push_back(symbols[place].id);
            ends.push_back(symbols[place].end);
        }
    }

private:
    struct Merge {
        int32_t rank, id;
    };
    struct Symbol {
        int32_t id, previous, next;
        size_t end;  // in bytes of the word
    };
    struct Candidate {
        int32_t rank, place, left, right, id;
        // The lowest rank first, then the first place.
        bool operator<(const Candidate& other) const {
            return rank != other.rank ? rank > other.rank : place > other.place;
        }
    };

    std::unordered_map<uint64_t, Merge> merges_;
    int32_t of_byte_[256];
    bool fallback_ = false;
    std::unordered_map<char32_t, int32_t> of_character_;  // with byte fallback
    int32_t rank_ = 0;

    // The tokens before the first merge.
    std::vector<Symbol> symbols_of(std::string_view bytes) const {
        std::vector<Symbol> symbols;
        symbols.reserve(bytes.size());
        const auto append = [&symbols](int32_t id, size_t end) {
            const auto place = static_cast<int32_t>(symbols.size());
            symbols.push_back({id, place - 1, place + 1, end});
        };
        for (size_t start = 0; start < bytes.size();) {
            size_t end = start + 1;
            while (fallback_ && end < bytes.size() && (bytes[end] & 0xC0) == 0x80) ++end;
            Text character;
            if (fallback_) decode(bytes.substr(start, end - start), character);
            const auto known = character.size() == 1 ? of_character_.find(character[0]) : of_character_.end();
            if (known != of_character_.end())
                append(known->second, end);
            else
                for (size_t at = start; at < end; ++at) append(of_byte_[static_cast<unsigned char>(bytes[at])], at + 1);
            start = end;
        }
        if (!symbols.empty()) symbols.back().next = -1;
        return symbols;
    }

    static uint64_t key(int32_t left, int32_t right) {
        return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
    }

    // Character of a byte in GPT-2's alphabet: printable bytes themselves, the others characters from U+0100 on.
    static char32_t letter_of(int byte) {
        const auto printable = [](int b) { return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174; };
        if (printable(byte)) return static_cast<char32_t>(byte);
        char32_t letter = 256;
        for (int before = 0; before < byte; ++before) letter += !printable(before);
        return letter;
    }
};

// Unigram (ALBERT): splits a word into the tokens with the largest sum of scores.
class Unigram final : public TokenModel {
public:
    explicit Unigram(const Json& json) {
        unknown_ = json["unk_id"].id();
        if (!json["vocab"].is_array() || unknown_ < 0 || json["byte_fallback"].boolean())
            throw Failure("a Unigram model of another kind than ALBERT's");
        int32_t place = 0;
        double lowest = 0;
        for (const Json& entry : json["vocab"].array()) {
            if (entry.array().size() != 2 || !entry.array()[0].is_string() || !entry.array()[1].is_number())
                throw Failure("token " + std::to_string(place) + " has no score");
            const double score = entry.array()[1].number();
            lowest = place ? std::min(lowest, score) : score;
            tokens_.add(entry.array()[0].string(), {place++, score});
        }
        unknown_score_ = lowest - kUnknownPenalty;
    }

    void append(std::string_view bytes, std::vector<int32_t>& ids, std::vector<size_t>& ends) const override {
        std::vector<Step> best(bytes.size() + 1);  // the best segmentation up to each byte
        best[0] = {0, 0, unknown_};
        for (size_t start = 0; start < bytes.size();) {
            const double here = best[start].score;
            const unsigned char first = static_cast<unsigned char>(bytes[start]);
            const size_t next = start + (first < 0x80 ? 1 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4);
            bool known = false;
            const auto offer = [&](size_t end, double score, int32_t id) {
                if (best[end].id < 0 || score > best[end].score) best[end] = {score, start, id};
            };
            const size_t last = std::min(bytes.size(), start + tokens_.longest());
            for (size_t end = start + 1; end <= last; ++end) {
                const Token* token = tokens_.find(bytes.substr(start, end - start));
                if (!token) continue;
                known = known || end == next;
                offer(end, here + token->score, token->id);
            }
            if (!known) offer(next, here + unknown_score_, unknown_);
            start = next;
        }
        const size_t before = ids.size();
        for (size_t at = bytes.size(); at > 0; at = best[at].start)
            if (!(best[at].id == unknown_ && ids.size() > before && ids.back() == unknown_)) {
                ids.push_back(best[at].id);
                ends.push_back(at);
            }
        std::reverse(ids.begin() + static_cast<std::ptrdiff_t>(before), ids.end());
        std::reverse(ends.begin(), ends.end());
    }

private:
    struct Token {
        int32_t id;
        double score;
    };
    struct Step {
        double score = 0;
        size_t start = 0;
        int32_t id = -1;
    };
    static constexpr double kUnknownPenalty = 10;  // score of an unknown character, below that of every token

    Vocabulary<Token> tokens_;
    int32_t unknown_;
    double unknown_score_;
};

}  // namespace

std::unique_ptr<TokenModel> word_piece(const Json& json) { return std::make_unique<WordPiece>(json); }
std::unique_ptr<TokenModel> byte_pair_encoding(const Json& json) { return std::make_unique<BytePairEncoding>(json); }
std::unique_ptr<TokenModel> unigram(const Json& json) { return std::make_unique<Unigram>(json); }

}  // namespace berxit
