#include "bundle.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "error.hpp"
#include "sha256.hpp"

namespace berxit {
namespace {

constexpr size_t kMapped = 1 << 20;  // files of at least so many bytes are memory-mapped

struct Descriptor {
    int number;
    explicit Descriptor(int opened) : number(opened) {}
    ~Descriptor() {
        if (number >= 0) close(number);
    }
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
};

}  // namespace

FileBytes::~FileBytes() {
    if (map_) munmap(map_, size_);
}

BundleFolder::BundleFolder(std::string path, bool verify) : path_(std::move(path)), verify_(verify) {
    folder_ = ::open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder_ < 0)
        throw Failure("cannot open bundle " + path_ + " (" + std::strerror(errno) + "): give the folder of a bundle");
}

BundleFolder::~BundleFolder() { close(folder_); }

std::unique_ptr<FileBytes> BundleFolder::open(const std::string& file) const {
    const std::string where = path_of(file);
    const Descriptor descriptor(openat(folder_, file.c_str(), O_RDONLY | O_CLOEXEC));
    struct stat state {};
    if (descriptor.number < 0 || fstat(descriptor.number, &state))
        throw Failure("cannot read " + where + " (" + std::strerror(errno) + "). Copy the bundle again, or export it again");
    if (!S_ISREG(state.st_mode)) throw Failure(where + " is no file. Copy the bundle again, or export it again");
    std::unique_ptr<FileBytes> bytes(new FileBytes);
    bytes->size_ = static_cast<size_t>(state.st_size);
    if (bytes->size_ >= kMapped) {
        void* map = mmap(nullptr, bytes->size_, PROT_READ, MAP_PRIVATE, descriptor.number, 0);
        if (map == MAP_FAILED) throw Failure("cannot map " + where + " (" + std::strerror(errno) + ")");
        bytes->map_ = map;
        bytes->data_ = static_cast<const char*>(map);
        return bytes;
    }
    bytes->own_.resize(bytes->size_);
    size_t done = 0;
    while (done < bytes->size_) {
        const ssize_t count = ::read(descriptor.number, &bytes->own_[done], bytes->size_ - done);
        if (count < 0 && errno == EINTR) continue;
        if (count <= 0) throw Failure("cannot read " + where + ". Copy the bundle again, or export it again");
        done += static_cast<size_t>(count);
    }
    bytes->data_ = bytes->own_.data();
    return bytes;
}

std::unique_ptr<FileBytes> BundleFolder::read(const DataFile& file) const {
    auto bytes = open(file.file);
    if (verify_ && sha256(bytes->data(), bytes->size()) != file.sha256)
        throw Failure(path_of(file.file) + ": checksum differs from the manifest's. Copy the bundle again, or export it again");
    return bytes;
}

std::unique_ptr<FileBytes> BundleFolder::read_tensor(const TensorFile& tensor) const {
    auto bytes = read(tensor);
    uint64_t size = size_of(tensor.dtype);
    for (int64_t each : tensor.shape) {
        if (each && size > (UINT64_C(1) << 62) / static_cast<uint64_t>(each))
            throw Failure(path_of(tensor.file) + ": the sizes of its shape are too large. Export the bundle again");
        size *= static_cast<uint64_t>(each);
    }
    if (bytes->size() != size)
        throw Failure(path_of(tensor.file) + ": " + std::to_string(bytes->size()) + " bytes, expected " + std::to_string(size) +
                      ". Copy the bundle again, or export it again");
    return bytes;
}

std::unique_ptr<FileBytes> BundleFolder::read_manifest() const { return open("manifest.json"); }

}  // namespace berxit
