import Foundation

/// Error of this package. Its message is one line with the failure, the place and the remedy.
public struct EarlyExitError: Error, Sendable {
    public enum Kind: Int, Sendable {
        /// Invalid input of the caller, such as an empty text or a threshold out of range.
        case input = 1
        /// Failure of a file, a model or the device.
        case failure
    }

    public let kind: Kind
    public let message: String
    /// Error of CoreML or of the file system that caused this one; nil without one.
    public let underlyingError: (any Error)?

    static func input(_ message: String) -> EarlyExitError {
        EarlyExitError(kind: .input, message: message, underlyingError: nil)
    }

    static func failure(_ message: String, underlying error: (any Error)? = nil) -> EarlyExitError {
        EarlyExitError(kind: .failure, message: message, underlyingError: error)
    }
}

extension EarlyExitError: LocalizedError {
    public var errorDescription: String? { message }
}

/// The error as an NSError, for crash reporters: the underlying error is under NSUnderlyingErrorKey.
extension EarlyExitError: CustomNSError {
    public static let errorDomain = "EarlyExit"

    public var errorCode: Int { kind.rawValue }

    public var errorUserInfo: [String: Any] {
        var info: [String: Any] = [NSLocalizedDescriptionKey: message]
        info[NSUnderlyingErrorKey] = underlyingError
        return info
    }
}
