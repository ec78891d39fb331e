import Foundation
import XCTest

@testable import EarlyExit

/// Cache of compiled models, with plain folders in place of models.
final class CompiledModelsTests: XCTestCase {
    func testModelIsCompiledOnce() async throws {
        let cache = CompiledModels(root: try temporaryFolder(), version: "18.1.0")
        var compiled = 0
        var places: Set<URL> = []
        for sum in ["a", "a", "b", "a"] {
            places.insert(
                try await cache.url(sum: sum) {
                    compiled += 1
                    return try self.model()
                })
        }
        XCTAssertEqual(compiled, 2)
        XCTAssertEqual(Set(places.map(\.lastPathComponent)), ["a.mlmodelc", "b.mlmodelc"])
        for place in places { XCTAssertTrue(exists(place.appendingPathComponent("model"))) }
    }

    func testDamagedModelIsCompiledAgain() async throws {
        let cache = CompiledModels(root: try temporaryFolder(), version: "18.1.0")
        let place = try await cache.url(sum: "a") { try self.model() }
        try FileManager.default.removeItem(at: place.appendingPathComponent("model"))
        var compiled = 0
        let loaded = try await cache.load(sum: "a") {
            compiled += 1
            return try self.model()
        } load: {
            try String(contentsOf: $0.appendingPathComponent("model"), encoding: .utf8)
        }
        XCTAssertEqual(loaded, "weights")
        XCTAssertEqual(compiled, 1)
    }

    func testModelThatNeverLoadsThrowsItsErrorAfterTwoCompilations() async throws {
        let cache = CompiledModels(root: try temporaryFolder(), version: "18.1.0")
        var compiled = 0
        await assertFails("cannot load 2") {
            try await cache.load(sum: "a") {
                compiled += 1
                return try self.model()
            } load: { _ -> Int in
                throw EarlyExitError.failure("cannot load \(compiled)")
            }
        }
        XCTAssertEqual(compiled, 2)
    }

    func testCancelledLoadDoesNotDeleteTheModel() async throws {
        let cache = CompiledModels(root: try temporaryFolder(), version: "18.1.0")
        let place = try await cache.url(sum: "a") { try self.model() }
        do {
            _ = try await cache.load(sum: "a") { try self.model() } load: { _ -> Int in throw CancellationError() }
            XCTFail("not cancelled")
        } catch is CancellationError {}
        XCTAssertTrue(exists(place))
    }

    func testPartialMoveIsNeverTakenForACachedModel() async throws {
        let root = try temporaryFolder()
        let full = CompiledModels(root: root, version: "18.1.0") { _, to in
            try FileManager.default.createDirectory(at: to, withIntermediateDirectories: true)  // half of the copy
            throw CocoaError(.fileWriteOutOfSpace)
        }
        let uncached = try await full.url(sum: "a") { try self.model() }
        XCTAssertTrue(exists(uncached.appendingPathComponent("model")), "the compiled model is usable")
        XCTAssertEqual(try names(in: root.appendingPathComponent("18.1.0")), [])

        let cached = try await CompiledModels(root: root, version: "18.1.0").url(sum: "a") { try self.model() }
        XCTAssertTrue(exists(cached.appendingPathComponent("model")))
        XCTAssertEqual(try names(in: root.appendingPathComponent("18.1.0")), ["a.mlmodelc"])
    }

    func testRunnersThatCompileAtOnceShareOneModel() async throws {
        let root = try temporaryFolder()
        let cache = CompiledModels(root: root, version: "18.1.0")
        let place = try await cache.url(sum: "a") {
            _ = try await cache.url(sum: "a") { try self.model() }  // another runner is faster
            return try self.model()
        }
        XCTAssertTrue(exists(place.appendingPathComponent("model")))
        XCTAssertEqual(try names(in: root.appendingPathComponent("18.1.0")), ["a.mlmodelc"])
    }

    func testOtherSystemVersionCompilesAgainAndDeletesOldModels() async throws {
        let root = try temporaryFolder()
        let before = CompiledModels(root: root, version: "18.1.0")
        let after = CompiledModels(root: root, version: "18.2.0")
        let old = try await before.url(sum: "a") { try self.model() }
        let new = try await after.url(sum: "a") { try self.model() }
        XCTAssertNotEqual(old, new)
        after.removeStale()
        XCTAssertFalse(exists(old))
        XCTAssertTrue(exists(new))
    }

    func testModelIsDeletedIfItWasNotLoadedForKeptDays() async throws {
        let root = try temporaryFolder()
        let cache = CompiledModels(root: root, version: "18.1.0")
        let folder = root.appendingPathComponent("18.1.0")
        for sum in ["unused", "used"] { try await load(sum, from: cache) }
        cache.removeStale(today: CompiledModels.today + CompiledModels.keptDays)
        XCTAssertEqual(try names(in: folder), ["unused.mlmodelc", "unused.used", "used.mlmodelc", "used.used"])

        let long = CompiledModels.today - CompiledModels.keptDays - 1
        for sum in ["unused", "used"] {
            try Data(String(long).utf8).write(to: folder.appendingPathComponent("\(sum).used"))
        }
        try await load("used", from: cache)
        cache.removeStale()
        XCTAssertEqual(try names(in: folder), ["used.mlmodelc", "used.used"])
    }

    func testModelWithoutUseRecordCountsAsUsedToday() async throws {
        let root = try temporaryFolder()
        let cache = CompiledModels(root: root, version: "18.1.0")
        let place = try await cache.url(sum: "a") { try self.model() }
        cache.removeStale()
        XCTAssertTrue(exists(place))
        cache.removeStale(today: CompiledModels.today + CompiledModels.keptDays + 1)
        XCTAssertFalse(exists(place))
    }

    func testScratchFoldersOfEndedProcessesAreDeleted() async throws {
        let root = try temporaryFolder()
        let cache = CompiledModels(root: root, version: "18.1.0")
        _ = try await cache.url(sum: "a") { try self.model() }
        let folder = root.appendingPathComponent("18.1.0")
        let own = ".compiled-\(ProcessInfo.processInfo.processIdentifier)-1"
        for scratch in [".compiled-0-1", own] {
            try FileManager.default.createDirectory(
                at: folder.appendingPathComponent(scratch), withIntermediateDirectories: true)
        }
        cache.removeStale()
        XCTAssertEqual(try names(in: folder), [own, "a.mlmodelc", "a.used"])
    }

    private func load(_ sum: String, from cache: CompiledModels) async throws {
        _ = try await cache.load(sum: sum) { try self.model() } load: { $0 }
    }

    private func model() throws -> URL {
        let folder = try temporaryFolder().appendingPathComponent("some.mlmodelc")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        try Data("weights".utf8).write(to: folder.appendingPathComponent("model"))
        return folder
    }

    private func names(in folder: URL) throws -> [String] {
        try FileManager.default.contentsOfDirectory(atPath: folder.path).sorted()
    }

    private func exists(_ place: URL) -> Bool {
        FileManager.default.fileExists(atPath: place.path)
    }
}
