Feature: Requests that should not be
  Whatever comes in gets an answer that says what was wrong, and never confuses the next request.
  (␍ and ␊ are the bytes that end a line, ␀ is a zero byte, {key} is the server's key.)

  Scenario Outline: A request with <oddity> is turned away and the connection closed
    Given a server
    When I send the bytes "<bytes>"
    Then it is refused as "INVALID_PARAMS"
    And the answer carries a correlation id
    And the server closes the connection
    And the server still works

    Examples:
      | oddity                         | bytes                                                                                                      |
      | two lengths                    | POST /v1/tasks HTTP/1.1␍␊Host: a␍␊X-API-Key: {key}␍␊Content-Length: 2␍␊Content-Length: 3␍␊␍␊{}             |
      | two equal lengths              | POST /v1/tasks HTTP/1.1␍␊Host: a␍␊X-API-Key: {key}␍␊Content-Length: 2␍␊Content-Length: 2␍␊␍␊{}             |
      | a length and chunks            | POST /v1/tasks HTTP/1.1␍␊Host: a␍␊X-API-Key: {key}␍␊Content-Length: 5␍␊Transfer-Encoding: chunked␍␊␍␊0␍␊␍␊ |
      | line ends without a return     | GET /metrics HTTP/1.1␊Host: a␊␊                                                                            |
      | a space before a colon         | GET /metrics HTTP/1.1␍␊Host : a␍␊␍␊                                                                        |
      | a folded header                | GET /metrics HTTP/1.1␍␊Host: a␍␊X-Note: one␍␊ two␍␊␍␊                                                      |
      | a length that is no number     | POST /v1/tasks HTTP/1.1␍␊Host: a␍␊X-API-Key: {key}␍␊Content-Length: +2␍␊␍␊{}                               |
      | a chunk size that is no number | POST /v1/tasks HTTP/1.1␍␊Host: a␍␊X-API-Key: {key}␍␊Transfer-Encoding: chunked␍␊␍␊xyz␍␊{}␍␊0␍␊␍␊           |
      | no sense at all                | ␖␃␁␂␀␁␀␁é␃␃␍␊␍␊                                                                                            |
      | a zero byte in a header        | GET /metrics HTTP/1.1␍␊Host: a␀b␍␊␍␊                                                                       |
      | no host                        | GET /metrics HTTP/1.1␍␊␍␊                                                                                  |

  Scenario: A body in a coding that nobody knows
    Given a server
    When I send the bytes "POST /v1/tasks HTTP/1.1␍␊Host: a␍␊X-API-Key: {key}␍␊Transfer-Encoding: gzip␍␊␍␊"
    Then it is refused, whatever the reason
    And the answer carries a correlation id
    And the server closes the connection
    And the server still works

  Scenario: A head that is too long
    Given a server
    When I send a request with a head of 200000 bytes
    Then it is refused as "HEADERS_TOO_LARGE"
    And the server still works

  Scenario: A body that says it is too long
    Given a server
    When I send the bytes "POST /v1/tasks HTTP/1.1␍␊Host: a␍␊X-API-Key: {key}␍␊Content-Length: 9000000000␍␊␍␊"
    Then it is refused as "PAYLOAD_TOO_LARGE"
    And the server still works

  Scenario: A body that turns out too long
    Given a server
    And the setting body_len_max is "1000"
    When I send a chunked body of 5000 bytes
    Then it is refused as "PAYLOAD_TOO_LARGE"
    And the server still works

  Scenario: A head that never ends
    Given a server
    And the setting head_timeout_ms is "200"
    When I send the bytes "GET /metrics HTTP/1.1␍␊Host: a␍␊X-Slow: " and nothing more
    Then the server gives up on it
    And the server still works

  Scenario: A body that never comes
    Given a server
    And the setting body_timeout_ms is "200"
    When I send the bytes "POST /v1/tasks HTTP/1.1␍␊Host: a␍␊X-API-Key: {key}␍␊Content-Length: 10␍␊␍␊{" and nothing more
    Then the server gives up on it
    And the server still works

  Scenario: A connection that nobody uses
    Given a server
    And the setting idle_timeout_ms is "200"
    When I send the bytes "" and nothing more
    Then the server gives up on it
    And the server still works

  Scenario: An unreasonable correlation id is replaced
    Given a server
    When I ask for "/metrics" under a correlation id of 129 characters
    Then it is answered
    And the answer carries a fresh correlation id
