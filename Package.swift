// swift-tools-version:6.0
import PackageDescription

// Here, and not in runners/swift, since Xcode and SwiftPM look for it at the root of a repository.
let package = Package(
    name: "EarlyExit",
    platforms: [.iOS(.v16), .macCatalyst(.v16), .macOS(.v13), .tvOS(.v16), .visionOS(.v1)],
    products: [.library(name: "EarlyExit", targets: ["EarlyExit"])],
    targets: [
        .target(name: "EarlyExit", path: "runners/swift/Sources/EarlyExit"),
        .testTarget(
            name: "EarlyExitTests", dependencies: ["EarlyExit"], path: "runners/swift/Tests/EarlyExitTests"),
    ],
    swiftLanguageModes: [.v6]
)
