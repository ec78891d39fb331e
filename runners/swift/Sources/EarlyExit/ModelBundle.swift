import Foundation

/// Bundle: a folder from berxit-export with all files that a device needs to run one model. It contains data only.
public struct ModelBundle: Sendable {
    public let folder: URL
    public let manifest: Manifest
    /// Identity of the bundle: the first 12 hexadecimal digits of the sha256 of manifest.json, which contains the
    /// checksums of all other files.
    public let digest: String

    /// Reads and checks a bundle. `verify`: also compare its files with their sha256. A package (.mlpackage) is compared
    /// when it is compiled, not here: an app opens a bundle far more often.
    ///
    /// Throws if anything is missing, damaged or newer than this package.
    public init(at folder: URL, verify: Bool = true) throws {
        let place = folder.appendingPathComponent("manifest.json")
        guard FileManager.default.fileExists(atPath: folder.path) else {
            throw EarlyExitError.failure(
                "no bundle at \(folder.path): add the folder that berxit-export wrote to the app. In Xcode 16 and later,"
                    + " turn off \"Build Folder Contents\" for it, so that it is copied as a folder")
        }
        self.folder = folder
        manifest = try Manifest(JSON.read(place), at: place.path)
        digest = String(try Checksum.of(place).prefix(12))
        for (file, sum) in manifest.files.sorted(by: { $0.key < $1.key }) {
            try check(file, sum: verify && !ModelBundle.isModel(file) ? sum : nil)
        }
    }

    /// Compiled model of a package: a folder (.mlmodelc) of the same name beside it, which `xcrun coremlcompiler
    /// compile` writes. nil if the bundle does not contain it.
    func compiled(_ file: String) -> URL? {
        let place = url(of: file).deletingPathExtension().appendingPathExtension("mlmodelc")
        return FileManager.default.fileExists(atPath: place.path) ? place : nil
    }

    /// True if the bundle contains the package of a segment, not only the compiled model.
    func hasPackage(_ segment: Segment) -> Bool {
        segment.file.hasSuffix(".mlpackage") && FileManager.default.fileExists(atPath: url(of: segment.file).path)
    }

    /// Throws unless the package (.mlpackage) matches its checksum.
    func checkPackage(_ segment: Segment) throws {
        try check(segment.file, sum: segment.sha256)
    }

    private static func isModel(_ file: String) -> Bool {
        [".mlpackage", ".mlmodelc"].contains { file.hasSuffix($0) }
    }

    func url(of file: String) -> URL {
        folder.appendingPathComponent(file)
    }

    func readTokenizer() throws -> Tokenizer {
        try Tokenizer(file: url(of: manifest.tokenizer.file), maxLength: manifest.model.maxLength)
    }

    func readGolden() throws -> Golden {
        let file = url(of: manifest.golden.file)
        return try Golden(JSON.read(file), at: file.path)
    }

    /// Throws unless the file exists inside the bundle and matches its checksum; `sum` nil: does not compare checksums,
    /// and accepts a compiled model in place of a package.
    private func check(_ file: String, sum: String?) throws {
        let path = url(of: file).resolvingSymlinksInPath().standardizedFileURL.path
        let inside = folder.resolvingSymlinksInPath().standardizedFileURL.path
        guard !file.hasPrefix("/"), path.hasPrefix(inside + "/") else {
            throw EarlyExitError.failure(
                "\(folder.path): file '\(file)' is outside the bundle. Do not use this bundle")
        }
        if sum == nil, compiled(file) != nil { return }
        guard FileManager.default.fileExists(atPath: path) else {
            throw EarlyExitError.failure(
                "\(folder.path): file '\(file)' is missing. Copy the whole bundle again, or export it again")
        }
        if let sum, try Checksum.of(url(of: file)) != sum {
            throw EarlyExitError.failure(
                "\(path): checksum differs from the manifest. Copy the bundle again, or export it again")
        }
    }
}
