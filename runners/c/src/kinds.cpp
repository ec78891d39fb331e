#include "kinds.hpp"

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace berxit {
namespace {

constexpr TaskKind kKinds[] = {
    {"classification", 2, SIZE_MAX, false, false, false},
    {"regression", 0, 0, true, false, false},
    {"multilabel", 1, 62, false, true, false},
    {"tokens", 3, SIZE_MAX, false, true, true},
};
// Logit of all classes but the first in the decision of a text without words, whose certainty is the highest.
constexpr float kCertain = -30000;

}  // namespace

const TaskKind* kind_named(const std::string& name) {
    for (const TaskKind& kind : kKinds)
        if (name == kind.name) return &kind;
    return nullptr;
}

Decisions decisions_of(
    const TaskKind& kind, const float* logits, size_t outputs, const Words& words, std::vector<float>& buffer) {
    if (!kind.several) return {logits};
    buffer.clear();
    if (!kind.words) {
        for (size_t label = 0; label < outputs; ++label) buffer.insert(buffer.end(), {0.0f, logits[label]});
        return {buffer.data(), outputs};
    }
    for (size_t token : words.tokens) buffer.insert(buffer.end(), logits + token * outputs, logits + (token + 1) * outputs);
    if (buffer.empty()) {
        buffer.assign(outputs, kCertain);
        buffer[0] = 0;
    }
    return {buffer.data(), std::max<size_t>(1, words.size())};
}

std::vector<berxit_span> spans_of(
    const std::vector<const std::string*>& tags, const std::vector<float>& scores, const Words& words) {
    std::vector<berxit_span> spans;
    const char* open = nullptr;  // label of the span that the next word may continue
    for (size_t word = 0; word < tags.size(); ++word) {
        const std::string& tag = *tags[word];
        const char* label = tag.size() > 2 ? tag.c_str() + 2 : nullptr;
        if (label && open && !std::strcmp(label, open) && tag[0] == 'I') {
            spans.back().end = words.ends[word];
            spans.back().score = std::min(spans.back().score, scores[word]);
        } else if (label) {
            spans.push_back({words.starts[word], words.ends[word], label, scores[word]});
        }
        open = label;
    }
    return spans;
}

}  // namespace berxit
