Feature: The log
  One line of JSON for what matters, enough to follow a task from the door to its last word.

  Scenario: Letting a task in is logged with its place and its predicted start
    Given a server
    When I send the task "story" under the correlation id "trace-me-1"
    Then the log has a line about "story" with "queue_position, predicted_start_ms, correlation_id"
    And the log's lines about "story" name the correlation id "trace-me-1"

  Scenario: The end of a task is logged with what it took
    Given a server
    When I send the task "story"
    And I read the stream of "story" to its end
    Then the log has a line about "story" with "tokens_in, tokens_out, decode_ms"
    And the log counts the tokens of "story" as its stream does

  Scenario: The log is JSON, line by line
    Given a server
    When I send the task "story"
    And I read the stream of "story" to its end
    Then every line of the log is JSON

  Scenario: The server says how to reach it
    Given a server
    When I ask how the pool is
    Then the server has said its address, its model and a curl line
