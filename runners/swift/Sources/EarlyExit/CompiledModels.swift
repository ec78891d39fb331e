import Foundation

/// .mlmodelc folders, compiled on this device once and kept in the caches folder under the sum of their .mlpackage.
struct CompiledModels: Sendable {
    /// A model that nobody has loaded for so long belongs to a bundle that the app no longer has.
    static let keptSeconds = 30.0 * 24 * 3600

    private let root: URL
    private let version: String

    /// `root` holds nothing but these; `version` is the system's: what another one compiled is compiled anew.
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

    /// The compiled model of a package with this sum; `compile` makes it, anywhere, where there is none.
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
                return compiled  // no room to keep it
            } catch {
                try? files.removeItem(at: compiled)  // another runner was faster
            }
        }
        try? files.setAttributes([.modificationDate: Date()], ofItemAtPath: kept.path)  // when it was last wanted
        return kept
    }

    /// Deletes what another system version compiled, and what nobody has loaded for `keptSeconds`. What cannot be
    /// deleted stays.
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
