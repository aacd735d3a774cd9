@faults
Feature: When something breaks
  The task that was hit is told so; the server lives, and the next task is served.

  Scenario: The engine crashes under a task
    Given a server
    And the engine crashes once after 20 steps
    When I send the long task "unlucky"
    And I open the stream of "unlucky"
    Then the stream of "unlucky" ends with the error "WORKER_RESET"
    And the error event of "unlucky" tells "code, message, engine, retriable"
    And the stream of "unlucky" has at least 1 token
    And the pool recovers
    When I send the task "story"
    And I read the stream of "story" to its end
    Then the stream of "story" ends properly

  Scenario: The device fails under a task
    Given a server
    And the device fails once after 20 steps
    When I send the long task "unlucky"
    And I open the stream of "unlucky"
    Then the stream of "unlucky" ends with the error "WORKER_RESET"
    And the pool recovers
    When I ask how the pool is
    Then the pool tells what went wrong last
    When I send the task "story"
    And I read the stream of "story" to its end
    Then the stream of "story" ends properly

  Scenario: The engine hangs
    Given a server
    And the setting decode_timeout_ms is "300"
    And one step of the engine hangs for 3000 ms after 20 steps
    When I send the long task "unlucky"
    And I open the stream of "unlucky"
    Then the stream of "unlucky" ends with the error "DECODE_TIMEOUT"
    And the error event of "unlucky" tells "code, message, engine, retriable"
    And the pool recovers
    When I send the task "story"
    And I read the stream of "story" to its end
    Then the stream of "story" ends properly

  Scenario: While the engine hangs, newcomers are told to come back
    Given a server
    And the setting decode_timeout_ms is "300"
    And one step of the engine hangs for 3000 ms after 20 steps
    When I send the long task "unlucky"
    And I open the stream of "unlucky"
    Then the stream of "unlucky" ends with the error "DECODE_TIMEOUT"
    When I send the task "story"
    Then it is refused as "POOL_UNREADY"
    And I am told to retry after at least 1 second
    And the refusal says that a retry is worthwhile
    And the refusal names the engine "cpu"

  Scenario: A task that failed before anybody looked is refused plainly
    Given a server
    And the engine crashes once after 2 steps
    When I send the long task "unlucky"
    And I wait until the log says that "unlucky" has ended
    And I open the stream of "unlucky"
    Then it is refused as "WORKER_RESET"
    And the refusal names the engine "cpu"

  Scenario: A crash does not reach those who ask for something else
    Given a server
    And the engine crashes once after 20 steps
    When I send the long task "unlucky"
    And I open the stream of "unlucky"
    Then the stream of "unlucky" ends with the error "WORKER_RESET"
    When I ask for "/v1/capabilities"
    Then it is answered
    When I ask for "/metrics"
    Then it is answered
