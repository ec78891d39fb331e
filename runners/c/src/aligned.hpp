// A text in a state of tokenization, with the place of each character in its source.
#pragma once

#include <functional>
#include <vector>

#include "unicode.hpp"

namespace berxit {

// Characters `start` to before `end` of the source.
struct Place {
    size_t start, end;
};

// If the text is aligned, each of its characters has a place in the source, as in the tokenizers library: that of the
// character that it replaces.
struct AlignedText {
    Text text;
    std::vector<Place> places;  // empty if the text is not aligned

    AlignedText() = default;
    AlignedText(TextView source, bool aligned);
    bool aligned() const { return !places.empty() && places.size() == text.size(); }
    AlignedText part(size_t start, size_t size) const;
    // The place of the characters from `start` to before `end`; {0, 0} if the text is not aligned.
    Place place(size_t start, size_t end) const;
    // Inserts a character at the start, with the place of the first one.
    void prepend(char32_t c);
};

// Applies a change of texts. To align the result, the text is divided into the smallest parts that change independently.
// Each character of a changed part has the place of the character at the same position, or of the last one.
void apply(const std::function<Text(Text)>& change, AlignedText& text);

// End of the match that starts at a place of a text; the place itself without one.
using Match = std::function<size_t(TextView, size_t)>;
// Replaces each match. The content has the place of the last character that it replaces.
void replace(AlignedText& text, const Match& match, const Text& content);

}  // namespace berxit
