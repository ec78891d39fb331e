import Foundation
import XCTest

@testable import EarlyExit

/// Cache of compiled models, with plain folders in place of models.
final class CompiledModelsTests: XCTestCase {
    func testAModelIsCompiledOnce() async throws {
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

    func testAnotherSystemVersionCompilesAnewAndDeletesTheOldOnes() async throws {
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

    func testAModelThatNobodyLoadsForLongIsDeleted() async throws {
        let cache = CompiledModels(root: try temporaryFolder(), version: "18.1.0")
        let unused = try await cache.url(sum: "a") { try self.model() }
        let used = try await cache.url(sum: "b") { try self.model() }
        let long = Date(timeIntervalSinceNow: -CompiledModels.keptSeconds - 60)
        for place in [unused, used] {
            try FileManager.default.setAttributes([.modificationDate: long], ofItemAtPath: place.path)
        }
        _ = try await cache.url(sum: "b") { throw EarlyExitError.failure("it is there") }
        cache.removeStale()
        XCTAssertFalse(exists(unused))
        XCTAssertTrue(exists(used))
    }

    private func model() throws -> URL {
        let folder = try temporaryFolder().appendingPathComponent("some.mlmodelc")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        try Data("weights".utf8).write(to: folder.appendingPathComponent("model"))
        return folder
    }

    private func exists(_ place: URL) -> Bool {
        FileManager.default.fileExists(atPath: place.path)
    }
}
