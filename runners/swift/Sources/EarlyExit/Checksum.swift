import Foundation

/// sha256 checksums, computed as in the manifest.
enum Checksum {
    /// Checksum of the bytes of a file, or of a folder: of the lines "PATH SHA256" of its files, in the order of paths.
    static func of(_ url: URL) throws -> String {
        var isFolder: ObjCBool = false
        guard FileManager.default.fileExists(atPath: url.path, isDirectory: &isFolder) else {
            throw EarlyExitError.failure("\(url.path) is missing. Copy the whole bundle again")
        }
        guard isFolder.boolValue else { return try ofFile(url) }
        let lines = try files(in: url).map { "\($0) \(try ofFile(url.appendingPathComponent($0)))\n" }
        var sha = SHA256Stream()
        sha.update(Data(lines.joined().utf8))
        return sha.finish()
    }

    private static func ofFile(_ file: URL) throws -> String {
        do {
            let handle = try FileHandle(forReadingFrom: file)
            defer { try? handle.close() }
            var sha = SHA256Stream()
            while let block = try handle.read(upToCount: 1 << 20), !block.isEmpty { sha.update(block) }
            return sha.finish()
        } catch {
            throw EarlyExitError.failure(
                "\(file.path) cannot be read (\(error.localizedDescription)). Copy it again", underlying: error)
        }
    }

    /// Relative paths of all files below a folder, sorted part by part and byte by byte. Finder's metadata is no
    /// content: macOS adds it to folders that a user opened or copied.
    private static func files(in folder: URL) throws -> [String] {
        let inside = try FileManager.default.subpathsOfDirectory(atPath: folder.path).filter { path in
            var isFolder: ObjCBool = false
            let full = folder.appendingPathComponent(path)
            return !isMetadata(full.lastPathComponent)
                && FileManager.default.fileExists(atPath: full.path, isDirectory: &isFolder) && !isFolder.boolValue
        }
        return inside.sorted { first, second in
            first.utf8.split(separator: UInt8(ascii: "/")).lexicographicallyPrecedes(
                second.utf8.split(separator: UInt8(ascii: "/"))
            ) { $0.lexicographicallyPrecedes($1) }
        }
    }

    /// True for a file that Finder writes: the settings of a folder, and the attributes of a file on a volume that
    /// cannot store them.
    private static func isMetadata(_ name: String) -> Bool {
        name == ".DS_Store" || name.hasPrefix("._")
    }
}
