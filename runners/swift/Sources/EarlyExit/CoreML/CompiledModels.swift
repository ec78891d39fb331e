import Foundation

/// Cache of compiled models (.mlmodelc folders), stored in the caches folder under the checksum of their .mlpackage.
///
/// Times of use are stored in files of the cache, because Apple requires a reason from apps that read file timestamps.
struct CompiledModels: Sendable {
    /// A compiled model that was not loaded for this many days is deleted: the app no longer has its bundle.
    static let keptDays = 30

    /// Folder of the models that this version of the operating system compiled.
    private let folder: URL
    private let move: @Sendable (URL, URL) throws -> Void

    /// `root`: folder that contains only this cache. `version`: that of the operating system; models that another
    /// version compiled are compiled again. `move`: moves a file or folder, as FileManager does.
    init(
        root: URL, version: String,
        move: @escaping @Sendable (URL, URL) throws -> Void = { try FileManager.default.moveItem(at: $0, to: $1) }
    ) {
        folder = root.appendingPathComponent(version)
        self.move = move
    }

    static func ofThisSystem() throws -> CompiledModels {
        let caches = try FileManager.default.url(
            for: .cachesDirectory, in: .userDomainMask, appropriateFor: nil, create: true)
        let system = ProcessInfo.processInfo.operatingSystemVersion
        return CompiledModels(
            root: caches.appendingPathComponent("EarlyExit.CompiledModels"),
            version: "\(system.majorVersion).\(system.minorVersion).\(system.patchVersion)")
    }

    /// Loads the compiled model of the package with this checksum. `compile` creates it if it is not cached.
    ///
    /// A model that cannot be loaded is deleted and compiled once more, because it may be damaged. Throws the second
    /// error.
    func load<Model>(
        sum: String, compile: () async throws -> URL, load: (URL) async throws -> Model
    ) async throws -> Model {
        let first = try await url(sum: sum, compile: compile)
        do {
            return try await use(first, sum: sum, load)
        } catch is CancellationError {
            throw CancellationError()
        } catch {
            try? FileManager.default.removeItem(at: first)
            return try await use(url(sum: sum, compile: compile), sum: sum, load)
        }
    }

    /// URL of the compiled model of the package with this checksum. If it is not cached, `compile` creates it.
    func url(sum: String, compile: () async throws -> URL) async throws -> URL {
        let kept = folder.appendingPathComponent("\(sum).mlmodelc")
        return exists(kept) ? kept : keep(try await compile(), as: kept)
    }

    /// Deletes models that another version of the operating system compiled or that were not loaded for `keptDays`, and
    /// scratch folders of processes that ended. Ignores errors.
    func removeStale(today: Int = CompiledModels.today) {
        for other in contents(of: folder.deletingLastPathComponent())
        where other.lastPathComponent != folder.lastPathComponent {
            try? FileManager.default.removeItem(at: other)
        }
        for item in contents(of: folder) {
            let name = item.lastPathComponent
            if name.hasPrefix(CompiledModels.scratch), !name.hasPrefix(CompiledModels.ownScratch) {
                try? FileManager.default.removeItem(at: item)
            } else if item.pathExtension == "mlmodelc", !wasUsed(sum: item.deletingPathExtension().lastPathComponent, today) {
                try? FileManager.default.removeItem(at: item)
                try? FileManager.default.removeItem(at: useRecord(item.deletingPathExtension().lastPathComponent))
            }
        }
    }

    // MARK: Files

    private static let scratch = ".compiled-"
    private static let ownScratch = "\(scratch)\(ProcessInfo.processInfo.processIdentifier)-"

    /// Stores a compiled model as `kept`, and returns its place: another one if it cannot be cached, such as on a full
    /// disk.
    ///
    /// A move between volumes is a copy that may stop halfway. The model is therefore moved to a scratch name in the
    /// same folder, and then renamed: `kept` is complete or does not exist.
    private func keep(_ compiled: URL, as kept: URL) -> URL {
        let scratch = folder.appendingPathComponent(CompiledModels.ownScratch + UUID().uuidString)
        do {
            try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
            try move(compiled, scratch)
        } catch {
            try? FileManager.default.removeItem(at: scratch)
            return compiled
        }
        do {
            try move(scratch, kept)
        } catch {
            guard exists(kept) else { return scratch }
            try? FileManager.default.removeItem(at: scratch)  // another runner has cached it meanwhile
        }
        return kept
    }

    private func use<Model>(_ url: URL, sum: String, _ load: (URL) async throws -> Model) async throws -> Model {
        let model = try await load(url)
        try? Data(String(CompiledModels.today).utf8).write(to: useRecord(sum))
        return model
    }

    /// File with the day of the last use.
    private func useRecord(_ sum: String) -> URL {
        folder.appendingPathComponent("\(sum).used")
    }

    /// True if a model was used in the last `keptDays`. A model without a readable record counts as used today.
    private func wasUsed(sum: String, _ today: Int) -> Bool {
        guard let text = try? String(contentsOf: useRecord(sum), encoding: .utf8), let day = Int(text) else {
            try? Data(String(today).utf8).write(to: useRecord(sum))
            return true
        }
        return today - day <= CompiledModels.keptDays
    }

    /// Days since 1970.
    static var today: Int { Int(Date().timeIntervalSince1970 / (24 * 3600)) }

    private func exists(_ url: URL) -> Bool {
        FileManager.default.fileExists(atPath: url.path)
    }

    private func contents(of folder: URL) -> [URL] {
        (try? FileManager.default.contentsOfDirectory(at: folder, includingPropertiesForKeys: nil)) ?? []
    }
}
