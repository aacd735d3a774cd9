Feature: Sending a task and reading its stream
  A task is accepted with a promise of when it starts; its words come one by one.

  Scenario: A task is accepted
    Given a server
    When I send the task "story"
    Then it is accepted
    And the answer tells "task_id, queue_position, predicted_start_ms, backoff_ms"
    And the answer carries a correlation id
    And the answer carries the budgets
    And the answer tells where the stream of "story" is

  Scenario: My correlation id comes back
    Given a server
    When I send the task "story" under the correlation id "order-66/a"
    Then it is accepted
    And the answer carries the correlation id "order-66/a"

  Scenario: The stream tells the whole story of a task
    Given a server
    When I send the task "story"
    And I read the stream of "story" to its end
    Then the stream of "story" has the events "started, token, metrics, end" in this order
    And the stream of "story" carries the budgets
    And the text of "story" is not empty

  Scenario: As many tokens as asked for, counted from 0
    Given a server
    When I send the task "story" with
      | max_tokens | 9    |
      | ignore_end | true |
    And I read the stream of "story" to its end
    Then the stream of "story" has 9 tokens
    And the stream of "story" ends because of "length"

  Scenario: Words arrive while the rest is still being written
    Given a server
    When I send the task "story" with
      | max_tokens | 200  |
      | ignore_end | true |
    And I read the stream of "story" to its end
    Then the tokens of "story" arrived one by one

  Scenario: A task and its stream in one request
    Given a server
    When I send the task "story" and read its stream in the same request
    Then the stream of "story" has the events "started, token, metrics, end" in this order
    And the stream of "story" carries the budgets

  Scenario: A late reader gets the stream from its beginning
    Given a server
    When I send the task "story"
    And I read the stream of "story" to its end
    And a second reader reads the stream of "story" to its end
    Then both readers of "story" saw the same

  Scenario: A reader who was cut off goes on where it was
    Given a server
    When I send the task "story"
    And I read the stream of "story" to its end
    And a reader comes back to the stream of "story" after its 4th event
    Then the reader who came back to "story" saw all that came after its 4th event

  Scenario: A reader who goes away may come back while the task runs on
    Given a server
    When I send the task "story" with
      | max_tokens | 300  |
      | ignore_end | true |
    And I open the stream of "story"
    And 3 tokens of "story" have arrived
    And the reader of "story" goes away
    And I read the stream of "story" to its end
    Then the stream of "story" ends properly
    And the stream of "story" has 300 tokens

  Scenario: A reader who never reads holds nobody up
    Given a server
    When I send the task "ignored" with
      | max_tokens | 400  |
      | ignore_end | true |
    And somebody opens the stream of "ignored" and never reads it
    And I send the task "story"
    And I read the stream of "story" to its end
    Then the stream of "story" ends properly

  Scenario: Sending the same task twice is sending it once
    Given a server
    When I send the task "story"
    And I send the task "story" once more
    Then both answers to "story" are the same
    And the metrics count 1 accepted task

  Scenario: The same id with another body is a mistake
    Given a server
    When I send the task "story"
    And I send the task "story" once more, but with
      | max_tokens | 7 |
    Then it is refused as "INVALID_PARAMS"
    And the refusal names "task_id"

  Scenario: A conversation is put to the model in its own form
    Given a server
    When I send the task "chat" with
      | prompt   |                                             |
      | messages | [{"role":"user","content":"Who are you?"}] |
    And I read the stream of "chat" to its end
    Then the stream of "chat" ends properly
    And the text of "chat" is not empty

  Scenario: Writing stops before the text I named, even in the middle of a word
    Given a server
    When I send the task "story" with
      | max_tokens | 60   |
      | ignore_end | true |
    And I read the stream of "story" to its end
    And I send a task "short" like "story" that stops at a piece from its middle
    And I read the stream of "short" to its end
    Then the text of "short" is that of "story" up to that piece
    And the stream of "short" ends because of "stop"

  Scenario: The tokens' numbers and probabilities come when asked for
    Given a server
    When I send the task "story" with
      | logprobs | true |
    And I read the stream of "story" to its end
    Then every token of "story" tells "i, t, id, logprob"

  Scenario: The stream of a task that nobody sent is not found
    Given a server
    When I ask for "/v1/tasks/00000000-0000-4000-8000-000000000000/stream"
    Then it is refused as "NOT_FOUND"
