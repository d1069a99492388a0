import CCrypto

/// SHA-256 (FIPS 180-4) by libcrypto, which has the processor's own instructions for it.
package struct SHA256 {
  /// libcrypto's state; a struct that owns it would be copied with it.
  private final class Context {
    let pointer: OpaquePointer

    init() {
      guard let pointer = EVP_MD_CTX_new(), EVP_DigestInit_ex(pointer, EVP_sha256(), nil) == 1 else {
        fatalError("libcrypto has no SHA-256")
      }
      self.pointer = pointer
    }

    deinit { EVP_MD_CTX_free(pointer) }
  }

  private let context = Context()

  package init() {}

  /// Takes more bytes into the hash.
  package mutating func update(_ bytes: UnsafeRawBufferPointer) {
    precondition(EVP_DigestUpdate(context.pointer, bytes.baseAddress, bytes.count) == 1, "libcrypto failed to hash")
  }

  /// Takes more bytes into the hash.
  package mutating func update(_ bytes: some Sequence<UInt8>) {
    if bytes.withContiguousStorageIfAvailable({ update(UnsafeRawBufferPointer($0)) }) == nil {
      Array(bytes).withUnsafeBytes { update($0) }
    }
  }

  /// Takes the UTF-8 of a text into the hash.
  package mutating func update(_ text: String) { update(text.utf8) }

  /// The hash of all bytes so far, in 64 lower-case hexadecimal digits; the hash ends with it.
  package mutating func finish() -> String {
    let bytes = [UInt8](unsafeUninitializedCapacity: 32) { buffer, count in
      precondition(EVP_DigestFinal_ex(context.pointer, buffer.baseAddress, nil) == 1, "libcrypto failed to hash")
      count = 32
    }
    let digits = Array("0123456789abcdef".utf8)
    return String(decoding: bytes.flatMap { [digits[Int($0 >> 4)], digits[Int($0 & 15)]] }, as: UTF8.self)
  }
}

/// SHA-256 of `bytes`, in hexadecimal.
package func sha256(_ bytes: some Sequence<UInt8>) -> String {
  var hash = SHA256()
  hash.update(bytes)
  return hash.finish()
}

/// SHA-256 of a text, in hexadecimal.
package func sha256(_ text: String) -> String { sha256(text.utf8) }
