// swift-tools-version:6.0
import PackageDescription

// Program of benchmarks/swift_tokenizers: compares the tokenizers of the Swift package with recorded token ids.
let package = Package(
    name: "TokenizerCheck",
    platforms: [.macOS(.v13)],
    dependencies: [.package(name: "EarlyExit", path: "../..")],
    targets: [
        .executableTarget(
            name: "TokenizerCheck", dependencies: [.product(name: "EarlyExit", package: "EarlyExit")])
    ],
    swiftLanguageModes: [.v6]
)
