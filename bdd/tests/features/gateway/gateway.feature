Feature: The front doors people already use
  Whoever has a client for another server can use it here, and learns from it what nobody else tells.

  Background:
    Given a server
    And the gateway is open

  Scenario: A chat is answered
    When I chat "Hello! Who are you?" at the gateway
    Then the chat is answered to its end
    And the chat's answer tells how to find and repeat it

  Scenario: A chat that streams says the same
    When I chat "Hello! Who are you?" at the gateway
    And I chat "Hello! Who are you?" at the gateway as a stream
    Then both chats say the same

  Scenario: Who waits is told where
    Given 1 task may run and 4 may wait
    And somebody's endless chat is running
    When I begin to chat at the gateway and wait
    Then I am told my place in the queue while I wait

  Scenario: A full house says when to come back, in words that clients know
    Given 1 task may run and 1 may wait
    And somebody's endless chat is running
    When I begin to chat at the gateway and wait
    And I chat "Is there room?" at the gateway
    Then the gateway refuses it as "queue_full" about nothing
    And a client's own retry is told when to come

  Scenario: What cannot be done is said and not ignored
    When I ask the gateway for a chat with tools
    Then the gateway refuses it as "invalid_value" about "tools"
    And a client's own retry is told not to come

  Scenario: Who leaves takes nobody's place
    Given 1 task may run and 4 may wait
    And somebody's endless chat is running
    When that somebody leaves
    And I chat "Is there room?" at the gateway
    Then the chat is answered to its end

  Scenario: Without a key there is no chat
    Given I have no key
    When I chat "Hello!" at the gateway
    Then the gateway refuses it as "invalid_api_key" about nothing
