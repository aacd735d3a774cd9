Feature: Whose turn it is
  People go before machines, each in the order in which they came; a house may choose another order.

  Scenario: People go first, and everybody in the order of their coming
    Given a server
    And 1 task may run and 8 may wait
    And the long task "hog" is running
    When I send the task "machine" with
      | priority | "batch" |
    And I send the task "first"
    And I send the task "second"
    And I open the streams of "machine", "first" and "second"
    And I cancel "hog"
    Then "first", "second" and "machine" begin in this order

  Scenario: A house where the earliest deadline goes first
    Given a server
    And the setting queue_order is "deadline"
    And 1 task may run and 8 may wait
    And the long task "hog" is running
    When I send the task "patient" with
      | deadline_ms | 600000 |
    And I send the task "urgent" with
      | deadline_ms | 200000 |
    Then the answer's "queue_position" is 0
    When I send the task "between" with
      | deadline_ms | 400000 |
    Then the answer's "queue_position" is 1
    When I open the streams of "patient", "urgent" and "between"
    And I cancel "hog"
    Then "urgent", "between" and "patient" begin in this order

  Scenario: A house where keys take turns
    Given a server
    And the setting queue_order is "fair"
    And the setting fair_quantum_tokens is "16"
    And 1 task may run and 8 may wait
    And there are the keys "key-of-the-busy" and "key-of-the-other"
    And my key is "key-of-the-busy"
    And the long task "hog" is running
    When I send the task "busy 1"
    And I send the task "busy 2"
    And I send the task "busy 3"
    And I go on with the key "key-of-the-other"
    And I send the task "other"
    Then the answer's "queue_position" is less than 3
    When I open the streams of "busy 1", "other" and "busy 3"
    And I cancel "hog"
    Then "busy 1", "other" and "busy 3" begin in this order

  Scenario: A machine's work gives way to a person and goes on where it was
    Given a server
    And 1 task may run and 8 may wait
    When I send the task "alone" with
      | priority   | "batch" |
      | max_tokens | 300     |
      | ignore_end | true    |
    And I read the stream of "alone" to its end
    And I send a task "machine" that is the same as "alone"
    And I open the stream of "machine"
    And 3 tokens of "machine" have arrived
    And I send the task "person"
    And I read the stream of "person" to its end
    Then the stream of "person" ends properly
    And the stream of "machine" has 300 tokens
    And the tokens of "machine" are those of "alone", byte for byte
    And the metrics count 1 "preemptions_total" by "engine" "cpu"

  Scenario: A machine's work has its turn in the end
    Given a server
    And the setting batch_ageing_ms is "200"
    And 1 task may run and 8 may wait
    And the long task "hog" is running
    When I send the task "machine" with
      | priority | "batch" |
    And I send 3 people ahead of it with 900 tokens each
    And I read the stream of "machine" to its end
    Then the stream of "machine" ends properly
    And not all of the people had their turn before "machine"
