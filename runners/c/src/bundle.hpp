// The opened files of a bundle.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "manifest.hpp"

namespace berxit {

// The bytes of a file. Large files are memory-mapped, so that only the pages that are read take memory.
class FileBytes {
public:
    ~FileBytes();
    FileBytes(const FileBytes&) = delete;
    FileBytes& operator=(const FileBytes&) = delete;
    const char* data() const { return data_; }
    size_t size() const { return size_; }
    std::string_view view() const { return {data_, size_}; }

private:
    friend class BundleFolder;
    FileBytes() = default;
    std::string own_;
    const char* data_ = "";
    size_t size_ = 0;
    void* map_ = nullptr;
};

// A bundle's folder, which is opened once. Files are opened relative to it, so that a bundle that is replaced meanwhile is
// never mixed with the new one.
class BundleFolder {
public:
    BundleFolder(std::string path, bool verify);
    ~BundleFolder();
    BundleFolder(const BundleFolder&) = delete;
    BundleFolder& operator=(const BundleFolder&) = delete;

    // The bytes of a file of the manifest. Throws Failure for a missing file or a checksum that differs.
    std::unique_ptr<FileBytes> read(const DataFile& file) const;
    // The same for a raw tensor, whose size must match.
    std::unique_ptr<FileBytes> read_tensor(const TensorFile& tensor) const;
    std::unique_ptr<FileBytes> read_manifest() const;
    std::string path_of(const std::string& file) const { return path_ + "/" + file; }
    const std::string& path() const { return path_; }

private:
    std::string path_;
    bool verify_;
    int folder_;
    std::unique_ptr<FileBytes> open(const std::string& file) const;
};

// Throws Failure unless the ONNX model consists of known operators on tensors in the file itself.
void check_onnx(std::string_view model, const std::string& where);

}  // namespace berxit
