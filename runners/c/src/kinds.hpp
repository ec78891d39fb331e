// Task kinds: the decisions of a text, and its prediction (docs/bundle.md, "decisions").
#pragma once

#include <string>
#include <vector>

#include "berxit.h"
#include "policy.hpp"
#include "tokenizer.hpp"

namespace berxit {

// A named head: `count` labels HEAD=CLASS from number `first` on.
struct Head {
    std::string name;
    size_t first, count;
};

// What the decisions of a text predict.
struct Described {
    std::vector<float> scores;        // probabilities of the classes or labels; for regression one value; empty for tokens
    int32_t label = -1;               // index of the predicted class; -1 for other kinds
    std::string label_text;           // empty for regression
    std::vector<const char*> labels;  // multilabel: the labels; heads: HEAD=CLASS of each head
    std::vector<berxit_span> spans;   // tokens: the spans, in bytes of the text
};

// `names`, `heads`: of the model. `scores`: probabilities of the decisions, `size` numbers each. The pointers in the result
// point into `names`. The largest logit decides, because different logits may have the same probability in float32.
using Describe = Described (*)(const std::vector<std::string>& names, const std::vector<Head>& heads, const Decisions& decisions,
                               size_t size, std::vector<float> scores, const Words& words);

struct TaskKind {
    const char* name;  // model.kind of the manifest
    size_t least_labels, most_labels;
    bool regression;
    bool several;  // a text has several decisions
    bool words;    // the decisions are those of the words of a text
    bool heads;    // the decisions are those of named heads
    Describe describe;
};

// Null for a kind that this runner does not know.
const TaskKind* kind_named(const std::string& name);

// The names of all kinds, for a message.
std::string kind_names();

// The heads in the labels of a model. `column`: names of their columns, separated by "|". Throws Failure, whose message starts
// with `model`, for labels without heads, and for too few or too many columns.
std::vector<Head> heads_of(const std::vector<std::string>& labels, const std::string& column, const std::string& model);

// Number of classes of a decision; 1 for a value. `heads`: those of a model with named heads.
int32_t classes_of(const TaskKind& kind, size_t labels, const std::vector<Head>& heads);

// The decisions of a row. `logits`: of an exit, `outputs` numbers, or for tokens as many per token. The decisions may be
// stored in `buffer`. A head with fewer classes than another is filled up.
Decisions decisions_of(const TaskKind& kind, const float* logits, size_t outputs, const std::vector<Head>& heads,
                       const Words& words, std::vector<float>& buffer);

// The spans of tags, one per word. An I that continues no span of its label begins one. `scores`: of each tag. The labels
// are parts of `tags`.
std::vector<berxit_span> spans_of(
    const std::vector<const std::string*>& tags, const std::vector<float>& scores, const Words& words);

}  // namespace berxit
