Feature: The same task says the same
  Bit for bit: alone or in a crowd, cold or warm, with one thread or more.

  Scenario: Alone and in a crowd of 16 others
    Given a server
    And 17 tasks may run and 32 may wait
    When I send the task "alone" with
      | max_tokens | 40   |
      | ignore_end | true |
    And I read the stream of "alone" to its end
    And I send a crowd of 16 tasks
    And I send a task "crowded" that is the same as "alone", and cold
    And I read the stream of "crowded" to its end
    Then the tokens of "crowded" are those of "alone", byte for byte

  Scenario: Sampled, alone and in a crowd
    Given a server
    And 9 tasks may run and 32 may wait
    When I send the task "alone" with
      | max_tokens  | 40   |
      | ignore_end  | true |
      | temperature | 1.0  |
      | top_p       | 0.9  |
      | seed        | 42   |
    And I read the stream of "alone" to its end
    And I send a crowd of 8 tasks
    And I send a task "crowded" that is the same as "alone", and cold
    And I read the stream of "crowded" to its end
    Then the tokens of "crowded" are those of "alone", byte for byte

  Scenario: Cold and warm
    Given a server
    When I send the task "cold" with a prompt of 150 words
    And I read the stream of "cold" to its end
    And I send a task "warm" that is the same as "cold"
    And I read the stream of "warm" to its end
    Then the tokens of "warm" are those of "cold", byte for byte

  Scenario: With one thread and with two, on two servers
    Given a server
    When I send the task "one" with
      | temperature | 0.7 |
      | seed        | 5   |
      | max_tokens  | 40  |
    And I read the stream of "one" to its end
    And the server is started again with the setting threads at "2"
    And I send a task "two" that is the same as "one"
    And I read the stream of "two" to its end
    Then the tokens of "two" are those of "one", byte for byte

  Scenario: Fed in one piece and in many
    Given a server
    And 4 tasks may run and 16 may wait
    When I send the task "whole" with a prompt of 150 words
    And I read the stream of "whole" to its end
    And the server is started again with the setting step_rows_max at "8"
    And I send a task "pieces" that is the same as "whole"
    And I read the stream of "pieces" to its end
    Then the tokens of "pieces" are those of "whole", byte for byte

  Scenario: Another seed says something else
    Given a server
    When I send the task "heads" with
      | temperature | 1.0  |
      | seed        | 1    |
      | max_tokens  | 40   |
      | ignore_end  | true |
    And I read the stream of "heads" to its end
    And I send a task "tails" that is the same as "heads", but with
      | seed | 2 |
    And I read the stream of "tails" to its end
    Then the tokens of "tails" are not those of "heads"
