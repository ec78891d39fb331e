// Task kinds: the decisions of a text, and its prediction (docs/bundle.md, "decisions").
#pragma once

#include <string>
#include <vector>

#include "berxit.h"
#include "policy.hpp"
#include "tokenizer.hpp"

namespace berxit {

struct TaskKind {
    const char* name;  // model.kind of the manifest
    size_t least_labels, most_labels;
    bool regression;
    bool several;  // a text has several decisions
    bool words;    // the decisions are those of the words of a text

    // Number of classes of a decision; 1 for a value.
    int32_t classes(size_t labels) const { return regression ? 1 : several && !words ? 2 : static_cast<int32_t>(labels); }
};

// Null for a kind that this runner does not know.
const TaskKind* kind_named(const std::string& name);

// The decisions of a row. `logits`: of an exit, `outputs` numbers, or for tokens as many per token. The decisions may be
// stored in `buffer`.
Decisions decisions_of(
    const TaskKind& kind, const float* logits, size_t outputs, const Words& words, std::vector<float>& buffer);

// The spans of tags, one per word. An I that continues no span of its label begins one. `scores`: of each tag. The labels
// are parts of `tags`.
std::vector<berxit_span> spans_of(
    const std::vector<const std::string*>& tags, const std::vector<float>& scores, const Words& words);

}  // namespace berxit
