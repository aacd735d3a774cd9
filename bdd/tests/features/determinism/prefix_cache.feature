Feature: Not reading the same thing twice
  A prompt that was read before is not read again, and nobody can tell except by the clock.

  Scenario: The second time a prompt is warm
    Given a server
    When I send the task "first" in the session "mine" with a prompt of 150 words
    And I read the stream of "first" to its end
    And I send a task "second" that is the same as "first"
    And I read the stream of "second" to its end
    Then "first" was cold and "second" was warm
    And the tokens of "second" are those of "first", byte for byte

  Scenario: A prompt can be shared between sessions
    Given a server
    When I send the task "first" in the session "mine" with a prompt of 150 words
    And I read the stream of "first" to its end
    And I send a task "second" in the session "yours" that is the same as "first"
    And I read the stream of "second" to its end
    Then the tokens of "second" are those of "first", byte for byte

  Scenario: Who asks to start cold starts cold
    Given a server
    When I send the task "first" with a prompt of 150 words
    And I read the stream of "first" to its end
    And I send a task "second" that is the same as "first", and cold
    And I read the stream of "second" to its end
    Then "first" was cold and "second" was cold

  Scenario: When memory is short, old prompts make room
    Given a server
    And the setting kv_blocks_max is "24"
    When I send 6 different tasks with prompts of 100 words, one after the other
    Then all of them end properly
