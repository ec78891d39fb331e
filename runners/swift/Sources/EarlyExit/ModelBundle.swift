import Foundation

/// Bundle: a folder from berxit-export with all files that a device needs to run one model. It contains data only.
public struct ModelBundle: Sendable {
    public let folder: URL
    public let manifest: Manifest
    /// Identity of the bundle: the first 12 hexadecimal digits of the sha256 of manifest.json, which contains the
    /// checksums of all other files.
    public let digest: String

    /// Reads and checks a bundle. `verify`: also compare its files with their sha256, except models: a package is
    /// compared when it is compiled, and `verifyModels` compares all.
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
        for (file, sum) in manifest.files.sorted(by: { $0.key < $1.key }) where !isReplaced(file) {
            try check(file, sum: verify && !ModelBundle.isModel(file) ? sum : nil)
        }
    }

    /// Compares the packages and compiled models with their sha256. Call this after a download: nothing else protects
    /// compiled models outside the signed app.
    public func verifyModels() throws {
        for (file, sum) in manifest.files where ModelBundle.isModel(file) && !isReplaced(file) {
            try check(file, sum: sum)
        }
    }

    /// Compiled model of a segment: the one that the manifest names, or a folder (.mlmodelc) of the same name beside the
    /// package, which `xcrun coremlcompiler compile` writes. nil if the bundle contains neither.
    func compiled(_ segment: Segment) -> URL? {
        let place = url(of: segment.compiled?.file ?? ModelBundle.compiledName(segment.file))
        return FileManager.default.fileExists(atPath: place.path) ? place : nil
    }

    /// True if the bundle contains the package of a segment, not only the compiled model.
    func hasPackage(_ segment: Segment) -> Bool {
        FileManager.default.fileExists(atPath: url(of: segment.file).path)
    }

    /// Throws unless the package (.mlpackage) matches its checksum.
    func checkPackage(_ segment: Segment) throws {
        try check(segment.file, sum: segment.sha256)
    }

    /// True for a missing package whose compiled model the bundle contains.
    private func isReplaced(_ file: String) -> Bool {
        guard !FileManager.default.fileExists(atPath: url(of: file).path) else { return false }
        return manifest.functions.contains { $0.file == file && compiled($0) != nil }
    }

    private static func compiledName(_ package: String) -> String {
        package.replacingOccurrences(of: ".mlpackage", with: ".mlmodelc")
    }

    private static func isModel(_ file: String) -> Bool {
        [".mlpackage", ".mlmodelc"].contains { file.hasSuffix($0) }
    }

    /// Texts of the golden inputs: one or two per input.
    public func goldenTexts() throws -> [[String]] {
        try readGolden().texts
    }

    func url(of file: String) -> URL {
        folder.appendingPathComponent(file)
    }

    func readTokenizer() throws -> Tokenizer {
        let model = manifest.model
        return try Tokenizer(
            file: url(of: manifest.tokenizer.file), maxLength: model.maxLength, words: model.kind == .tokens)
    }

    func readGolden() throws -> Golden {
        let file = url(of: manifest.golden.file)
        return try Golden(JSON.read(file), at: file.path)
    }

    /// Throws unless the file exists inside the bundle and matches its checksum; `sum` nil: does not compare checksums.
    private func check(_ file: String, sum: String?) throws {
        let path = url(of: file).resolvingSymlinksInPath().standardizedFileURL.path
        let inside = folder.resolvingSymlinksInPath().standardizedFileURL.path
        guard !file.hasPrefix("/"), path.hasPrefix(inside + "/") else {
            throw EarlyExitError.failure(
                "\(folder.path): file '\(file)' is outside the bundle. Do not use this bundle")
        }
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
