import Foundation

extension Vectors {
    /// Path of a test vector of the package in the repository.
    static func url(_ name: String) -> URL {
        let root = (0..<6).reduce(URL(fileURLWithPath: #filePath)) { place, _ in place.deletingLastPathComponent() }
        return root.appendingPathComponent("runners/swift/Tests/EarlyExitTests/Vectors/\(name)")
    }
}
