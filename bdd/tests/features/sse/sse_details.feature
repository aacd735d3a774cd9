Feature: What a stream looks like
  Event by event, as the browsers' EventSource and curl read it.

  Scenario: The stream's head
    Given a server
    When I send the task "story"
    And I open the stream of "story"
    Then the stream of "story" is an event stream that nobody may keep or hold back
    And the stream of "story" carries the budgets
    And the stream of "story" carries a correlation id

  Scenario: The metrics come after the first token and tell all they should
    Given a server
    When I send the task "story"
    And I read the stream of "story" to its end
    Then the stream of "story" has the events "started, token, metrics, end" in this order
    And the metrics event of "story" tells "queue_depth, on_time_probability, kv_warmth"
    And the metrics event of "story" tells "tokens_budget_remaining, time_budget_remaining_ms, cost_budget_remaining"

  Scenario: The start tells the place in the queue and when it is one's turn
    Given a server
    When I send the task "story"
    And I read the stream of "story" to its end
    Then the started event of "story" tells "queue_position, predicted_start_ms"

  Scenario: The end tells how much was written, how long it took, and why it ended
    Given a server
    When I send the task "story"
    And I read the stream of "story" to its end
    Then the end event of "story" tells "tokens_out, decode_ms, finish_reason, artifact_id"
    And the end of "story" counts the tokens that came

  Scenario: Every event has its number
    Given a server
    When I send the task "story"
    And I read the stream of "story" to its end
    Then the events of "story" are numbered one after the other

  Scenario: Metrics do not come more often than they are set to
    Given a server
    And the setting metrics_interval_ms is "100000"
    When I send the task "story" with
      | max_tokens | 200  |
      | ignore_end | true |
    And I read the stream of "story" to its end
    Then the stream of "story" has 1 metrics event

  Scenario: Metrics keep coming while a task runs
    Given a server
    And the setting metrics_interval_ms is "10"
    When I send the task "story" with
      | max_tokens | 300  |
      | ignore_end | true |
    And I read the stream of "story" to its end
    Then the stream of "story" has more than 1 metrics event

  Scenario: A silent stream is kept alive
    Given a server
    And the setting heartbeat_ms is "50"
    And 1 task may run and 2 may wait
    And the long task "hog" is running
    When I send the task "story"
    And I open the stream of "story"
    Then the stream of "story" is kept alive while it waits

  Scenario: Characters of any script come whole
    Given a server
    When I send the task "story" with
      | prompt      | "Grüße, 世界! 🐦" |
      | temperature | 1.5               |
      | seed        | 11                |
      | max_tokens  | 120               |
      | ignore_end  | true              |
    And I read the stream of "story" to its end
    Then the stream of "story" ends properly
    And no token of "story" holds half a character

  Scenario: Two streams of one connection, one after the other
    Given a server
    When I send the tasks "first" and "second"
    And I read the streams of "first" and "second" on one connection
    Then both streams came whole
