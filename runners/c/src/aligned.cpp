#include "aligned.hpp"

#include <algorithm>

namespace berxit {
namespace {

// Largest number of characters that a change may combine. Longer runs are aligned in parts.
constexpr size_t kLongest = 32;

}  // namespace

AlignedText::AlignedText(TextView source, bool aligned) : text(source) {
    for (size_t at = 0; aligned && at < text.size(); ++at) places.push_back({at, at + 1});
}

AlignedText AlignedText::part(size_t start, size_t size) const {
    AlignedText found;
    found.text = text.substr(start, size);
    if (aligned()) {
        const auto first = places.begin() + static_cast<std::ptrdiff_t>(start);
        found.places.assign(first, first + static_cast<std::ptrdiff_t>(found.text.size()));
    }
    return found;
}

Place AlignedText::place(size_t start, size_t end) const {
    return aligned() && start < end && end <= places.size() ? Place{places[start].start, places[end - 1].end} : Place{0, 0};
}

void AlignedText::prepend(char32_t c) {
    if (aligned()) places.insert(places.begin(), places[0]);
    text.insert(text.begin(), c);
}

void apply(const std::function<Text(Text)>& change, AlignedText& text) {
    if (!text.aligned()) {
        text.text = change(std::move(text.text));
        return;
    }
    Text whole = change(text.text);
    if (whole == text.text) return;
    std::vector<Place> places;
    Text part, result;
    size_t start = 0;
    const auto close = [&] {
        for (size_t i = 0; i < result.size() && !part.empty(); ++i)
            places.push_back(text.places[start + std::min(i, part.size() - 1)]);
        start += part.size();
    };
    for (char32_t c : text.text) {
        Text alone = change(Text(1, c));
        if (!part.empty() && part.size() < kLongest) {
            Text together = change(part + c);
            if (together != result + alone) {
                part += c;
                result = std::move(together);
                continue;
            }
        }
        close();
        part = c;
        result = std::move(alone);
    }
    close();
    places.resize(whole.size(), places.empty() ? text.places.back() : places.back());  // differs after a part of kLongest only
    text.text = std::move(whole);
    text.places = std::move(places);
}

void replace(AlignedText& text, const Match& match, const Text& content) {
    const bool aligned = text.aligned();
    AlignedText out;
    for (size_t at = 0; at < text.text.size();) {
        const size_t end = match(text.text, at), next = std::max(end, at + 1);
        if (end > at)
            out.text += content;
        else
            out.text += text.text[at];
        if (aligned) out.places.resize(out.text.size(), text.places[next - 1]);
        at = next;
    }
    text = std::move(out);
}

}  // namespace berxit
