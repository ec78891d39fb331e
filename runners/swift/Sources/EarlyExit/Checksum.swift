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
            throw EarlyExitError.failure("\(file.path) cannot be read (\(error.localizedDescription)). Copy it again")
        }
    }

    /// Relative paths of all files below a folder, sorted part by part and byte by byte.
    private static func files(in folder: URL) throws -> [String] {
        let inside = try FileManager.default.subpathsOfDirectory(atPath: folder.path).filter { path in
            var isFolder: ObjCBool = false
            let full = folder.appendingPathComponent(path).path
            return FileManager.default.fileExists(atPath: full, isDirectory: &isFolder) && !isFolder.boolValue
        }
        return inside.sorted { first, second in
            first.utf8.split(separator: UInt8(ascii: "/")).lexicographicallyPrecedes(
                second.utf8.split(separator: UInt8(ascii: "/"))
            ) { $0.lexicographicallyPrecedes($1) }
        }
    }
}
