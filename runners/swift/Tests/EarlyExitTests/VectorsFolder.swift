import Foundation

extension Vectors {
    static func url(_ name: String) -> URL {
        Bundle.module.resourceURL!.appendingPathComponent("Vectors").appendingPathComponent(name)
    }
}
