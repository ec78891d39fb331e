// swift-tools-version:5.9
import PackageDescription

let package = Package(
    name: "EarlyExit",
    platforms: [.iOS(.v16), .macOS(.v13)],
    products: [.library(name: "EarlyExit", targets: ["EarlyExit"])],
    targets: [
        .target(name: "EarlyExit"),
        .testTarget(name: "EarlyExitTests", dependencies: ["EarlyExit"], resources: [.copy("Vectors")]),
    ]
)
