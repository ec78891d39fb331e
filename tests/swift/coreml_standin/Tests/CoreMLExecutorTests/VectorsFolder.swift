import Foundation

extension Vectors {
    /// The vectors of the package itself, at their place in the repository.
    static func url(_ name: String) -> URL {
        let root = (0..<6).reduce(URL(fileURLWithPath: #filePath)) { place, _ in place.deletingLastPathComponent() }
        return root.appendingPathComponent("runners/swift/Tests/EarlyExitTests/Vectors/\(name)")
    }
}
