// Content of manifest.json: docs/bundle.md.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "json.hpp"
#include "kinds.hpp"

namespace berxit {

constexpr int32_t kSchemaVersion = 3;
constexpr int32_t kAnySize = -1;  // a size that varies

struct DataFile {
    std::string file, sha256;
};

enum class Dtype { float32, float16, int8, uint8, int32, int64 };
size_t size_of(Dtype dtype);
const char* name_of(Dtype dtype);

struct TensorInfo {
    std::string name, role;
    Dtype dtype;
    std::vector<std::string> shape;  // decimal numbers, "batch" and "length"
    bool operator==(const TensorInfo& other) const;
};

struct TensorFile : DataFile {
    Dtype dtype;
    std::vector<int64_t> shape;
};

struct Segment : DataFile {
    int32_t layer, repeat;
    std::vector<TensorInfo> inputs, outputs;
    std::map<std::string, TensorFile> constants;
};

struct Manifest {
    // Throws Failure for a manifest that is damaged, newer than this reader, inconsistent, or for another target.
    Manifest(const std::string& content, const std::string& place);

    std::string precision, task, metric, digest;
    const TaskKind* kind;
    bool pairs, lte;
    std::vector<std::string> labels;
    std::vector<Head> heads;  // of a model with named heads
    int32_t schema_version, layers, hidden_size, max_length, pad_token_id;
    int32_t threads = 0;    // 0: not stated
    int32_t max_batch = 0;  // 0: any
    DataFile tokenizer, golden;
    std::vector<Segment> segments;  // the embeddings, then one segment per exit
    std::vector<int32_t> exits;     // layers with an exit
    double atol, scale;             // of the comparison with the golden inputs
    std::unique_ptr<ExitPolicy> policy;

    // Number of logits of an exit; for tokens per token.
    int32_t outputs() const { return kind->regression ? 1 : static_cast<int32_t>(labels.size()); }
    // Number of classes of a decision; 1 for regression.
    int32_t classes() const { return classes_of(*kind, labels.size(), heads); }
    // Rows of the word embedding table.
    int64_t table_rows() const;
    // All files except the manifest -> sha256.
    std::map<std::string, std::string> files() const;
};

}  // namespace berxit
