import Foundation

/// Cache of compiled models (.mlmodelc folders), stored in the caches folder under the checksum of their .mlpackage.
struct CompiledModels: Sendable {
    /// A compiled model that was not loaded for this time is deleted: the app no longer has its bundle.
    static let keptSeconds = 30.0 * 24 * 3600

    private let root: URL
    private let version: String

    /// `root`: folder that contains only this cache. `version`: that of the operating system; models that another
    /// version compiled are compiled again.
    init(root: URL, version: String) {
        self.root = root
        self.version = version
    }

    static func ofThisSystem() throws -> CompiledModels {
        let caches = try FileManager.default.url(
            for: .cachesDirectory, in: .userDomainMask, appropriateFor: nil, create: true)
        let system = ProcessInfo.processInfo.operatingSystemVersion
        return CompiledModels(
            root: caches.appendingPathComponent("EarlyExit.CompiledModels"),
            version: "\(system.majorVersion).\(system.minorVersion).\(system.patchVersion)")
    }

    /// URL of the compiled model of the package with this checksum. If it is not cached, `compile` creates it.
    func url(sum: String, compile: () async throws -> URL) async throws -> URL {
        let files = FileManager.default
        let folder = root.appendingPathComponent(version)
        let kept = folder.appendingPathComponent(sum).appendingPathExtension("mlmodelc")
        if !files.fileExists(atPath: kept.path) {
            try files.createDirectory(at: folder, withIntermediateDirectories: true)
            let compiled = try await compile()
            do {
                try files.moveItem(at: compiled, to: kept)
            } catch where !files.fileExists(atPath: kept.path) {
                return compiled  // it cannot be cached, such as on a full disk
            } catch {
                try? files.removeItem(at: compiled)  // another runner has cached it meanwhile
            }
        }
        try? files.setAttributes([.modificationDate: Date()], ofItemAtPath: kept.path)  // time of the last use
        return kept
    }

    /// Deletes models that another version of the operating system compiled, or that were not loaded for `keptSeconds`.
    /// Ignores errors.
    func removeStale(at time: Date = Date()) {
        let files = FileManager.default
        for folder in contents(of: root) where folder.lastPathComponent != version {
            try? files.removeItem(at: folder)
        }
        for model in contents(of: root.appendingPathComponent(version)) {
            let attributes = try? files.attributesOfItem(atPath: model.path)
            guard let loaded = attributes?[.modificationDate] as? Date,
                time.timeIntervalSince(loaded) > CompiledModels.keptSeconds
            else { continue }
            try? files.removeItem(at: model)
        }
    }

    private func contents(of folder: URL) -> [URL] {
        (try? FileManager.default.contentsOfDirectory(at: folder, includingPropertiesForKeys: nil)) ?? []
    }
}
