import CCrypto
import Foundation

/// What git names a file of this content by: the SHA-1 of it and its length, in hexadecimal. Hubs of models describe small
/// files so.
package func gitBlobName(_ content: Data) -> String {
  var digest = [UInt8](repeating: 0, count: 20)
  let bytes = Array("blob \(content.count)\0".utf8) + content
  precondition(EVP_Digest(bytes, bytes.count, &digest, nil, EVP_sha1(), nil) == 1, "libcrypto has no SHA-1")
  let digits = Array("0123456789abcdef".utf8)
  return String(decoding: digest.flatMap { [digits[Int($0 >> 4)], digits[Int($0 & 15)]] }, as: UTF8.self)
}
