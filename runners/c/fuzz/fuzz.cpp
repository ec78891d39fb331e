// Fuzzer with its own mutations, to be built with -DBERXIT_SANITIZE=ON. A crash or a sanitizer's report ends it.
//
//     berxit-fuzz texts TOKENIZER COUNT SEED          random texts, also invalid UTF-8, through the tokenizer
//     berxit-fuzz tokenizers TOKENIZER COUNT SEED     changed tokenizer.json files, each with a few texts
//     berxit-fuzz manifests BUNDLE COUNT SEED         changed manifest.json files
//     berxit-fuzz models FILE COUNT SEED              changed ONNX files through the check
//     berxit-fuzz predictions BUNDLE LIBRARY COUNT    predictions; prints the resident memory on the way
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "berxit.h"
#include "bundle.hpp"
#include "error.hpp"
#include "manifest.hpp"
#include "tokenizer.hpp"

namespace {

using namespace berxit;

std::string content(const std::string& file) {
    std::ifstream stream(file, std::ios::binary);
    if (!stream) throw Failure("cannot read " + file);
    return {std::istreambuf_iterator<char>(stream), {}};
}

class Random {
public:
    explicit Random(unsigned seed) : engine_(seed) {}
    size_t below(size_t count) { return count ? engine_() % count : 0; }

    char32_t character() {
        static constexpr char32_t kStarts[] = {0x20, 0x20, 0x20, 0x61, 0x61, 0xC0, 0x300, 0x370, 0x590, 0x600, 0x900, 0xE00,
                                               0x1100, 0x1E00, 0x2000, 0x2100, 0x3000, 0x4E00, 0xAC00, 0xFB00, 0xFF00, 0x10000,
                                               0x1D400, 0x1F1E6, 0x1F300, 0x20000, 0xE0000};
        const char32_t c = kStarts[below(std::size(kStarts))] + static_cast<char32_t>(below(below(4) ? 64 : 1024));
        return c >= 0xD800 && c < 0xE000 ? U'x' : c;
    }

    std::string text(size_t longest) {
        static constexpr const char* kParts[] = {"the ", "[SEP]", "[MASK]", "<mask>", "</s>", " ", "\n", "don't", "a\xcc\x81",
                                                 "\xe2\x80\x8d", "##s", "\xe2\x96\x81"};
        std::string out;
        for (size_t count = below(longest) + 1; count > 0; --count) {
            if (below(8) == 0)
                out += kParts[below(std::size(kParts))];
            else
                append_utf8(out, character());
        }
        return out;
    }

    // Deletes, repeats, replaces and inserts bytes, and swaps numbers and words that occur in JSON.
    std::string changed(std::string bytes) {
        static constexpr const char* kParts[] = {"0", "-1", "1e308", "2147483648", "9007199254740993", "null", "true", "[]", "{}",
                                                 "\"\"", "[[[[", "\\ud800", "\"batch\"", "0.5", ",", ":", "\xff"};
        for (size_t count = below(4) + 1; count > 0 && !bytes.empty(); --count) {
            const size_t place = below(bytes.size()), size = std::min(bytes.size() - place, below(24) + 1);
            const std::string part = kParts[below(std::size(kParts))];
            switch (below(7)) {
            case 0: bytes.erase(place, size); break;
            case 1: bytes.insert(place, bytes.substr(below(bytes.size()), size)); break;
            case 2: bytes[place] = static_cast<char>(below(256)); break;
            case 3: bytes.insert(place, part); break;
            case 4: bytes.resize(place); break;
            default: {  // a value of the file becomes another one
                const size_t start = bytes.find_first_of(":[,", place);
                if (start == std::string::npos) break;
                const size_t end = bytes.find_first_of(",]}\n", start + 1);
                if (end != std::string::npos) bytes.replace(start + 1, end - start - 1, part);
            }
            }
        }
        return bytes;
    }

private:
    std::mt19937_64 engine_;
};

void encode_some(const Tokenizer& tokenizer, Random& random, size_t max_length) {
    const std::string bytes = random.text(60), more = random.text(60);
    Text first, second;
    if (!decode(bytes, first) || !decode(more, second)) throw Failure("the fuzzer made invalid UTF-8");
    const TextView other = second;
    const Tokens tokens = tokenizer.encode(first, random.below(2) ? &other : nullptr, kNever, [] { return 0.0; });
    if (tokens.ids.size() != tokens.types.size() || tokens.size() > std::max<size_t>(max_length, 16)) std::abort();
}

int texts(const std::string& file, size_t count, Random random) {
    constexpr size_t kMaxLength = 24;
    const Tokenizer tokenizer(Json::parse(content(file)), kMaxLength, true);
    size_t invalid = 0;
    for (size_t turn = 0; turn < count; ++turn) {
        encode_some(tokenizer, random, kMaxLength);
        std::string bytes = random.text(40);
        bytes[random.below(bytes.size())] = static_cast<char>(random.below(256));
        Text text;
        invalid += !decode(bytes, text);
        if (!text.empty()) tokenizer.encode(text, nullptr, kNever, [] { return 0.0; });
    }
    std::printf("%zu texts, %zu not UTF-8\n", 2 * count, invalid);
    return 0;
}

template <typename Use>
int rejected(const char* what, const std::string& source, size_t count, Random random, const Use& use) {
    size_t rejected_count = 0;
    for (size_t turn = 0; turn < count; ++turn) {
        const std::string changed = random.changed(source);
        try {
            use(changed, random);
        } catch (const Failure& error) {
            ++rejected_count;
            if (std::string(error.what()).find('\n') != std::string::npos) throw std::logic_error("a message of several lines");
        }
    }
    std::printf("%zu changed %s, %zu rejected\n", count, what, rejected_count);
    return 0;
}

long resident_kib() {
    std::ifstream stream("/proc/self/statm");
    long pages = 0, resident = 0;
    stream >> pages >> resident;
    return resident * (sysconf(_SC_PAGESIZE) / 1024);
}

void need(berxit_status status) {
    if (status != BERXIT_OK) throw Failure(berxit_error());
}

int predictions(const char* bundle, const char* library, size_t count) {
    berxit_options options;
    berxit_options_init(&options);
    options.onnxruntime = library;
    options.threads = 1;
    berxit_runner* runner = nullptr;
    need(berxit_load(bundle, &options, &runner));
    const bool pairs = berxit_info_of(runner).pairs;
    Random random(7);
    berxit_call call;
    for (size_t done = 0, next = 0; done < count;) {
        std::vector<std::string> owned;
        for (size_t rows = random.below(6) ? 1 : random.below(40) + 1; owned.size() < 2 * rows;) owned.push_back("x" + random.text(60));
        std::vector<berxit_text> inputs;
        for (size_t i = 0; i < owned.size(); i += 2)
            inputs.push_back({owned[i].c_str(), pairs ? owned[i + 1].c_str() : nullptr, owned[i].size(), owned[i + 1].size()});
        berxit_call_init(&call);
        if (random.below(10) == 0) call.deadline_ms = 0.5 + static_cast<double>(random.below(20));
        berxit_result* result = nullptr;
        need(berxit_predict(runner, inputs.data(), inputs.size(), &call, &result));
        berxit_result_free(result);
        done += inputs.size();
        if (done >= next) {
            std::printf("%zu predictions: %ld KiB\n", done, resident_kib());
            std::fflush(stdout);
            next += count / 10;
        }
    }
    std::printf("%zu predictions: %ld KiB\n", count, resident_kib());
    berxit_free(runner);
    return 0;
}

}  // namespace

int main(int arguments_count, char** arguments) {
    try {
        const std::string name = arguments_count == 5 ? arguments[1] : "";
        const std::string file = arguments_count > 2 ? arguments[2] : "";
        if (name == "predictions") return predictions(arguments[2], arguments[3], std::strtoull(arguments[4], nullptr, 10));
        const size_t count = name.empty() ? 0 : std::strtoull(arguments[3], nullptr, 10);
        Random random(name.empty() ? 0 : static_cast<unsigned>(std::atoi(arguments[4])));
        if (name == "texts") return texts(file, count, random);
        if (name == "tokenizers")
            return rejected("tokenizers", content(file), count, random, [](const std::string& bytes, Random& own) {
                const Tokenizer tokenizer(Json::parse(bytes), 24, true);
                for (int i = 0; i < 3; ++i) {
                    const std::string text = own.text(30);
                    Text decoded;
                    decode(text, decoded);
                    tokenizer.encode(decoded, nullptr, kNever, [] { return 0.0; });
                }
            });
        if (name == "manifests")
            return rejected("manifests", content(file + "/manifest.json"), count, random,
                            [](const std::string& bytes, Random&) { Manifest(bytes, "manifest.json"); });
        if (name == "models")
            return rejected("models", content(file), count, random,
                            [](const std::string& bytes, Random&) { check_onnx(bytes, "a model"); });
        std::fprintf(stderr, "unknown arguments\n");
        return 2;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 1;
    }
}
