Feature: Going out of service
  Whoever has been promised an answer gets it, or is told that it will not come; nobody new is let in.

  Scenario: A draining pool takes no new tasks
    Given a server
    When I drain the pool and give it 5000 ms to finish
    And I send the task "late"
    Then it is refused as "POOL_UNAVAILABLE"
    And the refusal names the engine "cpu"

  Scenario: What runs may finish
    Given a server
    When I send the task "story" with
      | max_tokens | 300  |
      | ignore_end | true |
    And I open the stream of "story"
    And 2 tokens of "story" have arrived
    And I drain the pool and give it 30000 ms to finish
    Then it is accepted
    And the stream of "story" ends properly
    And the stream of "story" has 300 tokens

  Scenario: What has not finished in time ends with an error
    Given a server
    And the long task "story" is running
    When I drain the pool and give it 100 ms to finish
    Then the stream of "story" ends with the error "POOL_UNAVAILABLE"

  Scenario: A server that is asked to stop lets its tasks finish
    Given a server
    When I send the task "story" with
      | max_tokens | 300  |
      | ignore_end | true |
    And I open the stream of "story"
    And 2 tokens of "story" have arrived
    And the server is asked to stop
    Then the stream of "story" ends properly
    And the stream of "story" has 300 tokens
    And the server stops by itself

  Scenario: A server that is asked to stop does not wait forever
    Given a server
    And the setting drain_deadline_ms is "200"
    And the long task "story" is running
    When the server is asked to stop
    Then the stream of "story" ends with the error "POOL_UNAVAILABLE"
    And the server stops by itself
